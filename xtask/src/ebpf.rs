//! Builds the kernel programs (`agent-ebpf`) with whichever of two toolchains the machine has:
//!
//! 1. rustup's nightly with `rust-src`, and `bpf-linker` on the PATH: what most developers have;
//! 2. Debian's own compiler, whose source package always matches it, and a `bpf-linker` built against Debian's LLVM and
//!    kept in `<target>/tools`. What is missing is installed.
//!
//! rustup's toolchains are used as they are, never changed.

use std::{
    env, fs,
    hash::{DefaultHasher, Hash, Hasher},
    io::ErrorKind,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

const TARGET: &str = "bpfel-unknown-none";
const BPF_LINKER_VERSION: &str = "0.13.0";
const DEBIAN_COMPILER: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
/// Files and folders, relative to the root, whose content decides whether a build is up to date.
const INPUTS: [&str; 6] = [
    "agent-ebpf/Cargo.toml",
    "agent-ebpf/Cargo.lock",
    "agent-ebpf/src",
    "agent-common/Cargo.toml",
    "agent-common/src",
    "xtask/src/ebpf.rs",
];
/// Settings of the surrounding cargo that must not leak into a build for another target by another compiler.
const FOREIGN_SETTINGS: [&str; 10] = [
    "CARGO",
    "CARGO_BUILD_TARGET",
    "CARGO_ENCODED_RUSTFLAGS",
    "LD_LIBRARY_PATH",
    "RUSTC",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTDOC",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
];

/// Builds the kernel programs of the workspace at `root` unless they are up to date, and returns the object's path:
/// `<target>/bpf/snowfence.bpf.o`.
pub fn build_programs(root: &Path) -> Result<PathBuf> {
    let target = target_directory(root)?;
    let object = target.join("bpf/snowfence.bpf.o");
    let stamp = target.join("bpf/snowfence.bpf.o.inputs");
    let inputs = format!("{:016x}\n", hash_of_inputs(root)?);
    if object.is_file() && fs::read_to_string(&stamp).is_ok_and(|built_from| built_from == inputs) {
        return Ok(object);
    }

    let toolchain = match Toolchain::rustup(&target) {
        Some(toolchain) => toolchain,
        None => Toolchain::debian(&target)?,
    };
    step(&format!("building the kernel programs with {}", toolchain.name));
    let folder = target.join("bpf-build");
    run(toolchain.cargo(&folder).current_dir(root.join("agent-ebpf")).args([
        "build",
        "--release",
        "--locked",
        "--target",
        TARGET,
        "-Z",
        "build-std=core",
    ]))?;

    let built = folder.join(TARGET).join("release/snowfence");
    fs::create_dir_all(target.join("bpf"))?;
    // By way of a rename, so that nobody ever embeds half an object.
    let half = folder.join("snowfence.bpf.o");
    fs::copy(&built, &half).with_context(|| format!("copy {}", built.display()))?;
    fs::rename(&half, &object).with_context(|| format!("write {}", object.display()))?;
    fs::write(&stamp, inputs).with_context(|| format!("write {}", stamp.display()))?;
    step(&format!("kernel programs: {}", object.display()));
    Ok(object)
}

/// How to start cargo so that it builds for the kernel.
struct Toolchain {
    name: &'static str,
    linker: PathBuf,
    debian: bool,
}

impl Toolchain {
    /// rustup's nightly, if it has the standard library's source and there is a linker.
    fn rustup(target: &Path) -> Option<Self> {
        let sysroot = output(clean("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"])).ok()?;
        let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/src/lib.rs");
        if !source.is_file() {
            return None;
        }
        let linker =
            on_path("bpf-linker").or_else(|| Some(installed_linker(target)).filter(|path| path.is_file()))?;
        Some(Self { name: "rustup's nightly", linker, debian: false })
    }

    /// Debian's compiler, installed first where it is missing.
    fn debian(target: &Path) -> Result<Self> {
        let is_debian = Path::new("/etc/debian_version").exists() && on_path("apt-get").is_some();
        ensure!(is_debian, "{ORDINARY_MACHINE}");
        install_packages(&DEBIAN_COMPILER.map(String::from))?;
        let llvm = llvm_of_debians_compiler()?;
        let linker = installed_linker(target);
        if !linker.is_file() {
            install_packages(&[format!("llvm-{llvm}-dev"), format!("libclang-{llvm}-dev")])?;
            install_linker(target, &llvm)?;
        }
        Ok(Self { name: "Debian's compiler", linker, debian: true })
    }

    fn cargo(&self, build: &Path) -> Command {
        let mut command = if self.debian {
            let mut command = clean("/usr/bin/cargo");
            // Debian ships no nightly; its stable compiler is told to accept `-Z`.
            command
                .env("RUSTC", "/usr/bin/rustc")
                .env("RUSTC_BOOTSTRAP", "1")
                .env("PATH", "/usr/share/cargo/bin:/usr/bin:/bin");
            command
        } else {
            let mut command = clean("rustup");
            command.args(["run", "nightly", "cargo"]);
            command
        };
        // Debug information becomes BTF, which the kernel wants for maps and for readable verifier logs.
        let flags = [
            format!("-Clinker={}", self.linker.display()),
            "-Clink-arg=--btf".to_owned(),
            "-Cdebuginfo=2".to_owned(),
        ];
        command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f")).env("CARGO_TARGET_DIR", build);
        command
    }
}

const ORDINARY_MACHINE: &str = "\
the kernel programs need a nightly compiler with its source, and bpf-linker. Install them and run this again:
    rustup toolchain install nightly --profile minimal --component rust-src
    cargo install bpf-linker   # needs LLVM's development files, see https://github.com/aya-rs/bpf-linker
(on Debian, with apt-get, everything is installed for you)";

fn target_directory(root: &Path) -> Result<PathBuf> {
    let directory = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    std::path::absolute(&directory).with_context(|| format!("find {}", directory.display()))
}

fn installed_linker(target: &Path) -> PathBuf {
    target.join("tools/bin/bpf-linker")
}

fn install_linker(target: &Path, llvm: &str) -> Result<()> {
    let tools = target.join("tools");
    step(&format!("installing bpf-linker {BPF_LINKER_VERSION} for LLVM {llvm} into {}", tools.display()));
    run(clean("cargo")
        .args(["install", &format!("bpf-linker@{BPF_LINKER_VERSION}"), "--locked", "--no-default-features"])
        .args(["--features", &format!("llvm-{llvm}"), "--root"])
        .arg(&tools)
        .env("CARGO_TARGET_DIR", tools.join("build"))
        .env("LLVM_PREFIX", format!("/usr/lib/llvm-{llvm}")))?;
    fs::remove_dir_all(tools.join("build")).context("remove the linker's build folder")
}

/// The major version of the LLVM that Debian's compiler emits bitcode for; the linker must read exactly that.
fn llvm_of_debians_compiler() -> Result<String> {
    let version = output(clean("/usr/bin/rustc").arg("-vV"))?;
    version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))
        .and_then(|version| version.split('.').next())
        .map(str::to_owned)
        .with_context(|| format!("/usr/bin/rustc -vV does not say which LLVM it uses:\n{version}"))
}

fn install_packages(packages: &[String]) -> Result<()> {
    let missing: Vec<&str> =
        packages.iter().map(String::as_str).filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    step(&format!("installing Debian packages: {}", missing.join(" ")));
    run(apt_get()?.arg("update").arg("-qq"))?;
    run(apt_get()?.args(["install", "-y", "-qq", "--no-install-recommends"]).args(&missing))
        .with_context(|| format!("Debian's packages would not install. {ORDINARY_MACHINE}"))
}

fn is_installed(package: &str) -> bool {
    output(clean("dpkg-query").args(["-W", "-f", "${Status}", package]))
        .is_ok_and(|status| status == "install ok installed")
}

fn apt_get() -> Result<Command> {
    let user = output(clean("id").arg("-u"))?;
    let mut command = if user.trim() == "0" {
        clean("apt-get")
    } else if on_path("sudo").is_some() {
        let mut command = clean("sudo");
        command.arg("apt-get");
        command
    } else {
        bail!("packages are missing and this is neither root nor is there sudo: run this once as root");
    };
    command.env("DEBIAN_FRONTEND", "noninteractive");
    Ok(command)
}

fn clean(program: &str) -> Command {
    let mut command = Command::new(program);
    for name in FOREIGN_SETTINGS {
        command.env_remove(name);
    }
    command
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("start {}", command.get_program().display()))?;
    ensure!(status.success(), "failed ({status}): {command:?}");
    Ok(())
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("start {}", command.get_program().display()))?;
    ensure!(output.status.success(), "failed ({}): {command:?}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

fn on_path(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join(program)).find(|path| path.is_file())
}

fn step(what: &str) {
    eprintln!("{what}");
}

fn hash_of_inputs(root: &Path) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    BPF_LINKER_VERSION.hash(&mut hasher);
    for input in INPUTS {
        hash_path(&root.join(input), &mut hasher)?;
    }
    Ok(hasher.finish())
}

fn hash_path(path: &Path, hasher: &mut DefaultHasher) -> Result<()> {
    path.hash(hasher);
    if path.is_dir() {
        let entries = fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>();
        let mut entries = entries.with_context(|| format!("list {}", path.display()))?;
        entries.sort();
        return entries.iter().try_for_each(|entry| hash_path(entry, hasher));
    }
    match fs::read(path) {
        Ok(content) => content.hash(hasher),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_follows_content_and_nothing_else() {
        let root = env::temp_dir().join(format!("snowfence-ebpf-{}", std::process::id()));
        fs::create_dir_all(root.join("agent-ebpf/src")).unwrap();
        let source = root.join("agent-ebpf/src/main.rs");
        fs::write(&source, "one").unwrap();
        let first = hash_of_inputs(&root).unwrap();
        fs::write(&source, "one").unwrap();
        fs::write(root.join("README.md"), "not an input").unwrap();
        assert_eq!(first, hash_of_inputs(&root).unwrap());
        fs::write(&source, "two").unwrap();
        assert_ne!(first, hash_of_inputs(&root).unwrap());
        fs::remove_dir_all(root).unwrap();
    }
}
