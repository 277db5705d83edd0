//! Which installed package is the application, where the application is one.
//!
//! In containers the application often lies in site-packages itself. The module that runs as
//! `__main__` tells: `python -m app` has its spec, a console script the modules that it imported.

use super::objects::Heap;
use super::paths;
use super::sysinfo;
use crate::target::memory::Addr;

/// The top-level package that `__main__` belongs to, if it is an installed one.
pub fn of_main(heap: &Heap, interp: Addr) -> Option<String> {
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
