//! The files of an emulated machine: some of this one's, at their own places, with all the libraries that they need.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::programs;

pub struct Image {
    root: PathBuf,
}

impl Image {
    /// An empty one, with the folders that others are mounted on.
    pub fn new(root: &Path) -> Result<Self> {
        if root.exists() {
            fs::remove_dir_all(root).with_context(|| format!("remove {}", root.display()))?;
        }
        for folder in [
            "dev",
            "etc",
            "proc",
            "root",
            "run",
            "sys",
            "tmp",
            "usr/bin",
            "usr/sbin",
            "usr/lib",
            "usr/lib64",
            "var/tmp",
        ] {
            make(&root.join(folder))?;
        }
        for folder in ["bin", "sbin", "lib", "lib64"] {
            symlink(Path::new("usr").join(folder), root.join(folder)).context("link the folders of /usr")?;
        }
        Ok(Self { root: root.to_owned() })
    }

    /// busybox, under these names.
    pub fn busybox(&self, names: &[&str]) -> Result<()> {
        self.program(&programs::find("busybox").context("find busybox")?)?;
        names.iter().try_for_each(|name| self.link("/usr/bin/busybox", &format!("/usr/bin/{name}")))
    }

    /// A program of this machine, at its place, with its libraries.
    pub fn program(&self, path: &Path) -> Result<()> {
        self.copied_file(path)?;
        self.libraries_of(path)
    }

    /// A program that was built here, without what only a debugger needs.
    pub fn stripped(&self, path: &Path) -> Result<()> {
        let to = self.place(path)?;
        programs::run(Command::new("strip").arg("-o").arg(&to).arg(path))?;
        self.libraries_of(path)
    }

    /// The interpreter with its library, without what needs a package or a screen.
    pub fn python(&self, interpreter: &Path) -> Result<()> {
        self.program(interpreter)?;
        let ask = "import sysconfig; print(sysconfig.get_path('stdlib'))";
        let library = programs::output(Command::new(interpreter).args(["-c", ask]))?;
        let library = PathBuf::from(library.trim());
        let unused =
            ["__pycache__", "test", "idlelib", "tkinter", "pydoc_data", "dist-packages", "site-packages"];
        self.folder(&library, &unused)?;
        let modules = library.join("lib-dynload");
        let entries = fs::read_dir(&modules).with_context(|| format!("read {}", modules.display()))?;
        entries.flatten().try_for_each(|entry| self.libraries_of(&entry.path()))
    }

    /// A folder of this machine, without what has one of these names.
    pub fn folder(&self, path: &Path, without: &[&str]) -> Result<()> {
        self.folder_to(path, path, without)
    }

    /// Parts of a kernel's modules, unpacked.
    pub fn modules(&self, folder: &Path, parts: &[&str]) -> Result<()> {
        let release = folder.file_name().and_then(|name| name.to_str()).context("read a kernel's release")?;
        let to = Path::new("/usr/lib/modules").join(release);
        for part in parts {
            let part = Path::new("kernel").join(part);
            self.folder_to(&folder.join(&part), &to.join(&part), &[])?;
        }
        for entry in fs::read_dir(folder)?.flatten().filter(|entry| entry.path().is_file()) {
            self.file_to(&entry.path(), &to.join(entry.file_name()))?;
        }
        let unpack = "find \"$1\" -name '*.ko.xz' -exec xz -d {} +";
        let unpacked = self.inside(&to);
        programs::run(Command::new("sh").args(["-c", unpack, "sh"]).arg(unpacked))?;
        let depmod = programs::find("depmod").context("find depmod")?;
        programs::run(Command::new(depmod).arg("-b").arg(&self.root).arg(release))
    }

    /// A file with this text.
    pub fn file(&self, path: &str, text: &str) -> Result<()> {
        let to = self.place(Path::new(path))?;
        fs::write(&to, text).with_context(|| format!("write {}", to.display()))
    }

    pub fn link(&self, target: &str, path: &str) -> Result<()> {
        let to = self.place(Path::new(path))?;
        symlink(target, &to).with_context(|| format!("link {}", to.display()))
    }

    /// The first program.
    pub fn init(&self, script: &str) -> Result<()> {
        self.file("/init", script)?;
        fs::set_permissions(self.root.join("init"), fs::Permissions::from_mode(0o755))
            .context("make /init a program")
    }

    /// Packs everything into one file, in which all belongs to root.
    pub fn pack(self, to: &Path) -> Result<()> {
        let script = "find . | cpio -o -H newc -R 0:0 --quiet > \"$1\"";
        programs::run(Command::new("sh").args(["-c", script, "sh"]).arg(to).current_dir(&self.root))?;
        fs::remove_dir_all(&self.root).with_context(|| format!("remove {}", self.root.display()))
    }

    /// A file of this machine, at its place; where it is a link, the file that it leads to is there too.
    pub fn copied_file(&self, path: &Path) -> Result<()> {
        let real = fs::canonicalize(path).with_context(|| format!("find {}", path.display()))?;
        self.file_to(&real, &real)?;
        // Where /lib is a link to /usr/lib, what is meant by a path below it is the same there.
        let folder = path.parent().context("a file is in a folder")?;
        let folder = fs::canonicalize(folder).with_context(|| format!("find {}", folder.display()))?;
        let named = folder.join(path.file_name().context("a file has a name")?);
        if named == real || self.inside(&named).exists() {
            return Ok(());
        }
        let to = self.place(&named)?;
        symlink(&real, &to).with_context(|| format!("link {}", to.display()))
    }

    fn libraries_of(&self, program: &Path) -> Result<()> {
        // Of a program that needs none it says so, and fails.
        let listing =
            Command::new("ldd").arg(program).output().context("start ldd (Debian's package libc-bin)")?;
        let listing = String::from_utf8_lossy(&listing.stdout).into_owned();
        let libraries =
            listing.split_whitespace().filter(|word| word.starts_with('/') && !word.ends_with(':'));
        libraries.map(Path::new).try_for_each(|library| self.copied_file(library))
    }

    fn folder_to(&self, from: &Path, to: &Path, without: &[&str]) -> Result<()> {
        let entries = fs::read_dir(from).with_context(|| format!("read {}", from.display()))?;
        for entry in entries.flatten() {
            let name = entry.file_name();
            if without.iter().any(|unwanted| name == *unwanted) {
                continue;
            }
            let (from, to) = (entry.path(), to.join(&name));
            if from.is_dir() { self.folder_to(&from, &to, without)? } else { self.file_to(&from, &to)? }
        }
        Ok(())
    }

    fn file_to(&self, from: &Path, to: &Path) -> Result<()> {
        let to = self.place(to)?;
        if to.exists() {
            return Ok(());
        }
        // A link that leads nowhere is of no use there either.
        if !from.exists() {
            return Ok(());
        }
        fs::copy(from, &to).with_context(|| format!("copy {}", from.display())).map(drop)
    }

    /// Where a path of the machine is, with its folder made.
    fn place(&self, path: &Path) -> Result<PathBuf> {
        let to = self.inside(path);
        make(to.parent().unwrap_or(&self.root))?;
        Ok(to)
    }

    fn inside(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }
}

fn make(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_comes_with_its_libraries() {
        let root = std::env::temp_dir().join(format!("snowfence-image-{}", std::process::id()));
        let image = Image::new(&root).unwrap();
        let shell = programs::find("sh").unwrap();
        image.program(&shell).unwrap();
        assert!(image.inside(&fs::canonicalize(&shell).unwrap()).is_file());
        let listing = Command::new("ldd").arg(&shell).output().unwrap();
        if String::from_utf8_lossy(&listing.stdout).contains("libc.so") {
            let libraries = Command::new("find").arg(&root).args(["-name", "libc.so*"]).output().unwrap();
            assert!(!libraries.stdout.is_empty());
        }
        image.link("/usr/bin/true", "/usr/bin/ok").unwrap();
        assert!(fs::read_link(root.join("bin/ok")).is_ok(), "/bin is /usr/bin");
        fs::remove_dir_all(root).unwrap();
    }
}
