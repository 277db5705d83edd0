//! Why a process cannot be read, and what would help.

/// A target that could not be read as asked; `Display` is the reason, [`remedy`](Self::remedy) what to do.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AccessError {
    #[error("process {pid} does not exist")]
    Gone { pid: i32 },
}

impl AccessError {
    pub fn remedy(&self) -> Option<String> {
        None
    }
}
