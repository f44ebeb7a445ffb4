//! Functions that no checkpoint needs to name.
//!
//! Pickles are read here without calling anything, so a pickle that was made to run code does no harm here.
//! It is refused nevertheless, because it would look like a normal checkpoint until PyTorch opens it.

/// Returns whether a function runs programs or code, or downloads them, so that no checkpoint needs to name
/// it. `getattr` is not among these functions, although it can reach anything, because some Python releases
/// pickle enums with it.
pub(super) fn runs_code(module: &str, name: &str) -> bool {
    let root = module.split('.').next().unwrap_or(module);
    match root {
        "builtins" | "__builtin__" | "__builtins__" => matches!(
            name,
            "eval"
                | "exec"
                | "execfile"
                | "compile"
                | "open"
                | "input"
                | "__import__"
                | "apply"
                | "globals"
                | "locals"
                | "vars"
                | "setattr"
                | "delattr"
                | "breakpoint"
        ),
        "operator" | "_operator" => matches!(name, "attrgetter" | "methodcaller"),
        "torch" => {
            matches!(module, "torch.hub" | "torch.utils.cpp_extension")
                || (module == "torch.serialization" && name == "load")
                || (module == "torch" && name == "load")
        }
        "numpy" => name == "runstring" || (module == "numpy" && name == "load"),
        _ => matches!(
            root,
            "os" | "posix"
                | "nt"
                | "subprocess"
                | "_posixsubprocess"
                | "sys"
                | "pty"
                | "shutil"
                | "socket"
                | "runpy"
                | "importlib"
                | "imp"
                | "pkgutil"
                | "ctypes"
                | "_ctypes"
                | "webbrowser"
                | "code"
                | "codeop"
                | "commands"
                | "pdb"
                | "bdb"
                | "timeit"
                | "profile"
                | "cProfile"
                | "trace"
                | "pip"
                | "asyncio"
                | "urllib"
                | "urllib2"
                | "http"
                | "httplib"
                | "requests"
                | "aiohttp"
                | "ftplib"
                | "smtplib"
                | "telnetlib"
                | "pickle"
                | "_pickle"
                | "cPickle"
                | "marshal"
                | "pydoc"
                | "ensurepip"
                | "venv"
        ),
    }
}

/// Returns the usual name of the function. Python pickles `os.system` as `posix.system`.
pub(super) fn display_name(module: &str, name: &str) -> String {
    match module {
        "posix" | "nt" => format!("os.{name}"),
        "__builtin__" => format!("builtins.{name}"),
        _ => format!("{module}.{name}"),
    }
}
