//! A file that is found unwritable before the work, and that no trouble at the end makes us lose: written beside
//! itself and renamed, else written elsewhere.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Room that must be there at the least.
const LEAST: usize = 64 * 1024;

#[derive(Debug)]
pub enum Output {
    Stdout,
    /// A device, a pipe: written to as it is.
    Direct(PathBuf, File),
    /// Written to `part`, renamed at the end.
    File {
        file: PathBuf,
        part: PathBuf,
        open: Option<File>,
    },
}

/// What became of it.
pub enum Written {
    To(PathBuf),
    Stdout,
    /// Not where it should be: why, and where it is instead.
    Elsewhere(PathBuf, io::Error),
}

impl Output {
    /// Makes sure that it can be written.
    pub fn open(file: &Path) -> io::Result<Output> {
        if file == Path::new("-") {
            return Ok(Output::Stdout);
        }
        if std::fs::metadata(file).is_ok_and(|m| !m.is_file()) {
            let open = OpenOptions::new().write(true).open(file)?;
            return Ok(Output::Direct(file.to_owned(), open));
        }
        let mut name = file.file_name().ok_or(io::ErrorKind::IsADirectory)?.to_owned();
        name.push(format!(".{}.part", std::process::id()));
        let part = file.with_file_name(name);
        let mut open = File::create(&part)?;
        let room = open.write_all(&vec![0; LEAST]).and_then(|()| open.set_len(0));
        if let Err(error) = room {
            let _ = std::fs::remove_file(&part);
            return Err(error);
        }
        io::Seek::rewind(&mut open)?;
        Ok(Output::File { file: file.to_owned(), part, open: Some(open) })
    }

    pub fn write(mut self, mut to: impl FnMut(&mut dyn Write) -> io::Result<()>) -> io::Result<Written> {
        match self.try_write(&mut to) {
            Ok(written) => Ok(written),
            // Whoever read it has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(error),
            Err(error) => {
                let name = match &self {
                    Output::Stdout => return Err(error),
                    Output::Direct(file, _) | Output::File { file, .. } => {
                        file.file_name().unwrap_or_default()
                    }
                };
                let name = Path::new(if name == "full" { "hangscope-recording".as_ref() } else { name });
                let places =
                    [std::env::temp_dir(), "/tmp".into(), ".".into(), "/dev/shm".into(), "/var/tmp".into()];
                for place in places.into_iter().chain(std::env::home_dir()) {
                    let file = place.join(format!("{}-{}", std::process::id(), name.display()));
                    let mut write = || -> io::Result<()> {
                        let mut out =
                            BufWriter::new(OpenOptions::new().write(true).create_new(true).open(&file)?);
                        to(&mut out)?;
                        out.into_inner().map_err(|e| e.into_error())?.sync_all()
                    };
                    match write() {
                        Ok(()) => return Ok(Written::Elsewhere(file, error)),
                        Err(_) => _ = std::fs::remove_file(&file),
                    }
                }
                Err(error)
            }
        }
    }

    fn try_write(&mut self, to: &mut impl FnMut(&mut dyn Write) -> io::Result<()>) -> io::Result<Written> {
        match self {
            Output::Stdout => {
                let mut out = BufWriter::new(io::stdout().lock());
                to(&mut out)?;
                out.flush()?;
                Ok(Written::Stdout)
            }
            Output::Direct(file, open) => {
                let mut out = BufWriter::new(open);
                to(&mut out)?;
                out.flush()?;
                Ok(Written::To(file.clone()))
            }
            Output::File { file, part, open } => {
                let open = open.take().ok_or(io::ErrorKind::InvalidInput)?;
                let mut out = BufWriter::new(open);
                to(&mut out)?;
                out.into_inner().map_err(|e| e.into_error())?.sync_all()?;
                std::fs::rename(&*part, &*file)?;
                Ok(Written::To(file.clone()))
            }
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Output::File { part, .. } = self {
            // Gone already where all went well.
            let _ = std::fs::remove_file(part);
        }
    }
}
