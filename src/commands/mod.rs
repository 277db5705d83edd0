//! commands

/// `hangscope schema`.
pub mod schema;
