//! What the standard library is made of, by the first part of a module's name: where no directory tells.
//!
//! `sys.stdlib_module_names` of 3.10 to 3.15, those that are written in Python, and what 3.8 and 3.9 had.

const NAMES: &str = "\
     __future__ _aix_support _android_support _apple_support _ast_unparse _bootlocale _bootsubprocess \
     _collections_abc _colorize _compat_pickle _compression _dummy_thread _ios_support _markupbase \
     _opcode_metadata _osx_support _py_abc _py_warnings _pydatetime _pydecimal _pyio _pylong _pyrepl \
     _sitebuiltins _strptime _threading_local _weakrefset abc aifc annotationlib antigravity argparse ast \
     asynchat asyncio asyncore base64 bdb binhex bisect bz2 cProfile calendar cgi cgitb chunk cmd code \
     codecs codeop collections colorsys compileall compression concurrent configparser contextlib \
     contextvars copy copyreg crypt csv ctypes curses dataclasses datetime dbm decimal difflib dis \
     distutils doctest dummy_threading email encodings ensurepip enum filecmp fileinput fnmatch formatter \
     fractions ftplib functools genericpath getopt getpass gettext glob graphlib gzip hashlib heapq hmac \
     html http idlelib imaplib imghdr imp importlib inspect io ipaddress json keyword lib2to3 linecache \
     locale logging lzma mailbox mailcap mimetypes modulefinder multiprocessing netrc nntplib ntpath \
     nturl2path numbers opcode operator optparse os pathlib pdb pickle pickletools pipes pkgutil platform \
     plistlib poplib posixpath pprint profile profiling pstats pty py_compile pyclbr pydoc pydoc_data \
     queue quopri random re reprlib rlcompleter runpy sched secrets selectors shelve shlex shutil signal \
     site smtpd smtplib sndhdr socket socketserver sqlite3 sre_compile sre_constants sre_parse ssl stat \
     statistics string stringprep struct subprocess sunau symbol symtable sysconfig tabnanny tarfile \
     telnetlib tempfile textwrap this threading timeit tkinter token tokenize tomllib trace traceback \
     tracemalloc tty turtle turtledemo types typing unittest urllib uu uuid venv warnings wave weakref \
     webbrowser wsgiref xdrlib xml xmlrpc zipapp zipfile zipimport zoneinfo";

/// Whether a file that is named without its directory (`asyncio/events.py`) belongs to it.
pub fn has(file: &str) -> bool {
    let first = file.split('/').next().unwrap_or(file);
    let name = first.strip_suffix(".py").unwrap_or(first);
    !name.is_empty() && NAMES.split_ascii_whitespace().any(|n| n == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_the_first_part() {
        assert!(has("threading.py") && has("concurrent/futures/thread.py"));
        assert!(!has("shop.py") && !has("requests/api.py") && !has("") && !has("/usr/lib/threading.py"));
    }
}
