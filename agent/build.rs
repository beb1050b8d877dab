//! Embeds the kernel programs, which `cargo xtask build` makes, if they are there. Without them the agent builds all
//! the same, and says at start that it has none.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

fn main() {
    println!("cargo::rerun-if-env-changed=SNOWFENCE_BPF_OBJECT");
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let object = match env::var_os("SNOWFENCE_BPF_OBJECT") {
        Some(object) => {
            println!("cargo::rerun-if-changed={}", Path::new(&object).display());
            Some(PathBuf::from(object))
        }
        None => built_by_xtask(&out),
    };
    let embedded = out.join("snowfence.bpf.o");
    let result = match object {
        Some(object) => fs::copy(&object, &embedded).map(drop).map_err(|error| (object, error)),
        None => fs::write(&embedded, []).map_err(|error| (embedded, error)),
    };
    if let Err((path, error)) = result {
        println!("cargo::error=cannot embed the kernel programs: {}: {error}", path.display());
    }
}

/// `<target>/bpf/snowfence.bpf.o`, if it exists.
fn built_by_xtask(out: &Path) -> Option<PathBuf> {
    // cargo marks its target folder with this file, and so it does the folder of each `--target` inside.
    let is_marked = |folder: &&Path| folder.join("CACHEDIR.TAG").is_file();
    let inner = out.ancestors().find(is_marked)?;
    let target = inner.parent().filter(is_marked).unwrap_or(inner);
    // The folder is watched and not the file: cargo takes a missing file for one that always changes.
    let folder = target.join("bpf");
    fs::create_dir_all(&folder).ok()?;
    println!("cargo::rerun-if-changed={}", folder.display());
    Some(folder.join("snowfence.bpf.o")).filter(|object| object.is_file())
}
