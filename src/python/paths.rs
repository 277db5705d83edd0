//! Whose code a file is: the application's own, the standard library's, or an installed package's.
//! Decided from the target's own prefixes and path, never from names of packages.

use super::sysinfo::SysInfo;

pub struct Paths {
    /// Directories of the standard library, with a slash at the end.
    stdlib: Vec<String>,
    /// Installed packages that count as the application (`--app`), normalised.
    apps: Vec<String>,
}

impl Paths {
    pub fn new(sys: &SysInfo, apps: &[String]) -> Self {
        let version = format!("python3.{}", sys.minor());
        let mut stdlib: Vec<String> = Vec::new();
        let mut add = |dir: String| {
            let dir = format!("{}/", dir.trim_end_matches('/'));
            if !stdlib.contains(&dir) {
                stdlib.push(dir);
            }
        };
        if let Some(dir) = &sys.stdlib_dir {
            add(dir.clone());
        }
        let threaded = if sys.abiflags.as_deref().is_some_and(|f| f.contains('t')) { "t" } else { "" };
        for prefix in
            [&sys.base_prefix, &sys.base_exec_prefix, &sys.prefix, &sys.exec_prefix].into_iter().flatten()
        {
            for lib in ["lib", sys.platlibdir.as_deref().unwrap_or("lib")] {
                add(format!("{prefix}/{lib}/{version}{threaded}"));
            }
        }
        // A frozen or zipped standard library has an entry of its own on the path.
        for zip in sys.path.iter().filter(|p| p.ends_with(&format!("python3{}.zip", sys.minor()))) {
            add(zip.clone());
        }
        if let Some(zip) = sys.frozen_library() {
            add(zip.to_owned());
        }
        Paths { stdlib, apps: apps.iter().map(|a| normalise(a)).collect() }
    }

    /// Whether this file is the application's own code.
    pub fn is_user(&self, file: &str) -> bool {
        if file.is_empty() || is_generated(file) {
            return false;
        }
        match package(file) {
            Some(package) => self.is_app(package),
            None => !self.stdlib.iter().any(|dir| file.starts_with(dir.as_str())),
        }
    }

    /// Whether this file is part of the standard library.
    pub fn is_stdlib(&self, file: &str) -> bool {
        let ours = || self.stdlib.iter().any(|dir| file.starts_with(dir.as_str()));
        file.starts_with("<frozen ") || package(file).is_none() && ours()
    }

    fn is_app(&self, package: &str) -> bool {
        let package = normalise(package.split('.').next().unwrap_or(package));
        self.apps.contains(&package)
    }

    /// Counts one more installed package as the application's own.
    pub fn add_app(&mut self, package: &str) {
        self.apps.push(normalise(package));
    }
}

/// The top-level name of an installed package's file: what follows `site-packages/` or `dist-packages/`.
pub fn package(file: &str) -> Option<&str> {
    let rest = ["/site-packages/", "/dist-packages/"]
        .iter()
        .filter_map(|mark| file.rfind(mark).map(|at| at + mark.len()))
        .max()
        .map(|at| &file[at..])?;
    Some(rest.split('/').next().unwrap_or(rest))
}

/// Names of distributions are compared without case and with one kind of dash (PEP 503), and their
/// modules have underscores.
fn normalise(name: &str) -> String {
    name.trim_end_matches(".py").to_lowercase().replace(['-', '.'], "_")
}

/// `<sqlalchemy generated …>`, `<attrs generated …>`, `<frozen …>`: made by a library, or part of Python. What a person
/// has typed or given by `-c` has names of its own.
fn is_generated(file: &str) -> bool {
    const TYPED: [&str; 5] = ["<stdin>", "<string>", "<input>", "<ipython", "<python-input"];
    file.starts_with('<') && !TYPED.iter().any(|name| file.starts_with(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn venv() -> SysInfo {
        SysInfo {
            hexversion: 0x030b_07f0,
            prefix: Some("/srv/app/.venv".into()),
            base_prefix: Some("/usr".into()),
            path: vec!["/srv/app".into(), "/usr/lib/python311.zip".into()],
            ..SysInfo::default()
        }
    }

    #[test]
    fn whose_code_it_is() {
        let paths = Paths::new(&venv(), &[]);
        for file in [
            "/srv/app/main.py",
            "app.py",
            "<string>",
            "/usr/lib/python3.11x/a.py",
            "/opt/lib/python3.11/a.py",
        ] {
            assert!(paths.is_user(file), "{file}");
        }
        for file in [
            "/usr/lib/python3.11/threading.py",
            "/usr/lib/python311.zip/queue.py",
            "/srv/app/.venv/lib/python3.11/site-packages/flask/app.py",
            "/usr/lib/python3/dist-packages/gi/__init__.py",
            "<frozen runpy>",
            "",
        ] {
            assert!(!paths.is_user(file), "{file}");
        }
    }

    #[test]
    fn an_installed_application() {
        let paths = Paths::new(&venv(), &["My-App".into()]);
        assert!(paths.is_user("/x/site-packages/my_app/views.py"));
        assert!(paths.is_user("/x/site-packages/my_app.py"));
        assert!(!paths.is_user("/x/site-packages/my_app2/views.py"));
    }
}
