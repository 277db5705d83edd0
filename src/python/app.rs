//! Which installed package is the application, where the application is one.
//!
//! In containers the application often lies in site-packages itself. The module that runs as
//! `__main__` tells: `python -m app` has its spec, a console script the modules that it imported.

use super::objects::Heap;
use super::paths;
use super::sysinfo;
use crate::target::memory::Addr;

/// Programs that run somebody else's application: that is named on their command line.
const LAUNCHERS: [&str; 16] = [
    "gunicorn",
    "uvicorn",
    "hypercorn",
    "celery",
    "daphne",
    "waitress",
    "granian",
    "flask",
    "django",
    "rq",
    "dramatiq",
    "huey",
    "pytest",
    "gevent",
    "debugpy",
    "ddtrace",
];

/// The application's package: what runs as `__main__`, or what that was told to run.
pub fn find(heap: &Heap, interp: Addr, command: &[String]) -> Option<String> {
    let main = of_main(heap, interp)?;
    if !LAUNCHERS.contains(&main.as_str()) {
        return Some(main);
    }
    of_command(command)
}

/// `gunicorn shop.wsgi:app`, `celery -A shop worker`: the package of what is to be run.
fn of_command(command: &[String]) -> Option<String> {
    let is_name = |text: &str| {
        let part = |p: &str| {
            let begins = p.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
            begins && p.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        };
        !text.is_empty() && text.split('.').all(part)
    };
    let package = |text: &str| {
        let module = text.split(':').next().unwrap_or(text);
        is_name(module).then(|| module.split('.').next().unwrap_or(module).to_owned())
    };
    let mut args = command.iter().skip(1).map(String::as_str);
    while let Some(arg) = args.next() {
        match arg {
            "-A" | "--app" => return package(args.next()?),
            _ if arg.starts_with("--app=") => return package(&arg["--app=".len()..]),
            _ if arg.starts_with('-') || arg.contains(['/', '=']) => {}
            _ => {
                let Some((module, object)) = arg.split_once(':') else { continue };
                let object = object.split('(').next().unwrap_or(object);
                if is_name(module) && is_name(object) {
                    return package(module);
                }
            }
        }
    }
    None
}

/// The top-level package that `__main__` belongs to, if it is an installed one.
fn of_main(heap: &Heap, interp: Addr) -> Option<String> {
    let [main] = sysinfo::modules(heap, interp, ["__main__"]);
    let dict = heap.module_dict(main?)?;
    let [file, package] = heap.dict_get(dict, ["__file__", "__package__"]);
    if let Some(package) = package.and_then(|p| heap.checked_str(p)).filter(|p| !p.is_empty()) {
        return Some(package.split('.').next().unwrap_or(&package).to_owned());
    }
    if let Some(package) = file.and_then(|f| heap.checked_str(f)).as_deref().and_then(paths::package) {
        return Some(package.to_owned());
    }
    // A console script: `from app.cli import main`, then `sys.exit(main())`.
    let (entries, _) = heap.dict(dict, 64)?;
    entries.iter().find_map(|(_, value)| {
        let ty = heap.type_of(*value)?;
        if ty.name != "function" {
            return None;
        }
        let code = heap.ptr(value + heap.layout.function.code)?;
        let file = heap.checked_str(heap.ptr(code + heap.layout.code.filename)?)?;
        paths::package(&file).map(str::to_owned)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_launcher_runs() {
        let of = |line: &str| of_command(&line.split(' ').map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(of("python -m gunicorn --bind=127.0.0.1:80 shop.wsgi:app").as_deref(), Some("shop"));
        assert_eq!(of("gunicorn -b 0.0.0.0:80 -w 4 shop:make('x')").as_deref(), Some("shop"));
        assert_eq!(of("celery -A tasks.app worker").as_deref(), Some("tasks"));
        assert_eq!(of("celery --app=tasks worker").as_deref(), Some("tasks"));
        assert_eq!(of("gunicorn --bind 127.0.0.1:80"), None);
    }
}
