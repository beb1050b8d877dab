//! Other kernels than this machine's: Debian's, in an emulated machine. What is run there is the battery of bypasses, by
//! root of a container, in both modes; it needs no driver and no package of Python's.

mod image;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use self::image::Image;
use crate::{
    programs,
    setup::{self, Need},
};

/// The series of Debian's kernels that are tested: one in which programs on devices are filters, and one in which they are
/// links.
const SERIES: [&str; 2] = ["6.1", "6.12"];
/// What the machine is to be booted with, besides the console.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 lsm=capability,bpf";
/// The last line of a machine whose tests have passed.
const PASSED: &str = "the tests on this kernel have passed";
/// Longer than this no machine needs, in seconds.
const DEADLINE: u32 = 1500;
/// Modules that nothing asks the kernel for by name.
const MODULES: &str = "veth bridge macvlan inet_diag tcp_diag sch_ingress cls_bpf";

const NEEDS: [Need; 5] = [
    Need {
        what: "qemu-system-x86_64",
        package: "qemu-system-x86",
        is_there: || programs::find("qemu-system-x86_64").is_some(),
    },
    Need { what: "busybox", package: "busybox-static", is_there: || programs::find("busybox").is_some() },
    Need { what: "cpio", package: "cpio", is_there: || programs::find("cpio").is_some() },
    Need { what: "depmod", package: "kmod", is_there: || programs::find("depmod").is_some() },
    Need { what: "xz", package: "xz-utils", is_there: || programs::find("xz").is_some() },
];

/// What a machine needs of this workspace.
#[derive(Debug)]
pub struct Parts<'a> {
    pub root: &'a Path,
    /// The test program of the battery.
    pub battery: &'a Path,
    /// The agent and the sandbox's own program, which lie beside each other.
    pub programs: [&'a Path; 2],
}

/// Prepares a machine for each kernel; the commands that run them, each with the kernel's name.
pub fn machines(parts: &Parts<'_>) -> Result<Vec<(String, Command)>> {
    ensure!(cfg!(target_arch = "x86_64"), "tests on other kernels need an x86-64 machine");
    setup::install(&NEEDS)?;
    let cache = programs::target(parts.root)?.join("kernels");
    fs::create_dir_all(&cache).with_context(|| format!("make {}", cache.display()))?;
    SERIES.iter().map(|series| machine(series, parts, &cache)).collect()
}

fn machine(series: &str, parts: &Parts<'_>, cache: &Path) -> Result<(String, Command)> {
    let package = newest(series)?;
    let kernel = fetch(&package, cache)?;
    let image = cache.join(format!("{series}.cpio"));
    build_image(&kernel, parts, &image).with_context(|| format!("build a machine for {package}"))?;
    let script = "timeout \"$1\" qemu-system-x86_64 -accel tcg -cpu max -smp 2 -m 3072 -nographic -no-reboot \
                  -kernel \"$2\" -initrd \"$3\" -append \"$4\" | tr -d '\\r' | tee \"$3.log\"; grep -qx \"$5\" \"$3.log\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh", &DEADLINE.to_string()]).arg(kernel.image()?).arg(image);
    command.args([COMMAND_LINE, PASSED]);
    Ok((package.trim_start_matches("linux-image-").to_owned(), command))
}

/// The name of the newest package of a series.
fn newest(series: &str) -> Result<String> {
    let pattern = format!("^linux-image-{}\\..*-cloud-amd64$", series.replace('.', "\\."));
    let offered = programs::output(Command::new("apt-cache").args(["search", "--names-only", &pattern]))
        .context("look for Debian's kernels: this needs Debian, or the names of its packages")?;
    let names = offered.lines().filter_map(|line| line.split_whitespace().next());
    let newest = names.max_by_key(|name| numbers(name)).map(ToOwned::to_owned);
    newest.with_context(|| {
        format!("no package linux-image-{series}.*-cloud-amd64 is offered: run `apt-get update`")
    })
}

/// The numbers in a name, by which versions are compared.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|character: char| !character.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

/// A kernel's package, unpacked.
struct Kernel {
    folder: PathBuf,
}

impl Kernel {
    fn image(&self) -> Result<PathBuf> {
        let boot = self.folder.join("boot");
        let entries = fs::read_dir(&boot).with_context(|| format!("read {}", boot.display()))?;
        let mut files = entries.flatten().map(|entry| entry.path());
        let is_kernel = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
        };
        files.find(is_kernel).with_context(|| format!("find a kernel in {}", boot.display()))
    }

    /// Its modules, in a folder that is called after its release.
    fn modules(&self) -> Result<PathBuf> {
        let all = self.folder.join("lib/modules");
        let entries = fs::read_dir(&all).with_context(|| format!("read {}", all.display()))?;
        let first = entries.flatten().next();
        first.map(|entry| entry.path()).with_context(|| format!("find modules in {}", all.display()))
    }
}

fn fetch(package: &str, cache: &Path) -> Result<Kernel> {
    let folder = cache.join(package);
    if folder.exists() {
        return Ok(Kernel { folder });
    }
    let coming = cache.join(format!("{package}.coming"));
    let _ = fs::remove_dir_all(&coming);
    fs::create_dir(&coming).with_context(|| format!("make {}", coming.display()))?;
    programs::run(Command::new("apt-get").args(["download", "-qq", package]).current_dir(&coming))?;
    let files = fs::read_dir(&coming)?.flatten().map(|entry| entry.path());
    let Some(file) = files.into_iter().find(|path| path.extension().is_some_and(|end| end == "deb")) else {
        bail!("apt-get has brought no package {package}");
    };
    let unpacked = coming.join("unpacked");
    programs::run(Command::new("dpkg-deb").arg("-x").arg(file).arg(&unpacked))?;
    fs::rename(&unpacked, &folder).with_context(|| format!("make {}", folder.display()))?;
    fs::remove_dir_all(&coming).with_context(|| format!("remove {}", coming.display()))?;
    Ok(Kernel { folder })
}

fn build_image(kernel: &Kernel, parts: &Parts<'_>, to: &Path) -> Result<()> {
    let image = Image::new(&to.with_extension("root"))?;
    image.busybox(&["cat", "echo", "mkdir", "mount", "poweroff", "sh", "uname"])?;
    for name in ["ip", "nft", "openssl", "kmod"] {
        image.program(&programs::find(name).with_context(|| format!("find {name}"))?)?;
    }
    image.link("/usr/bin/kmod", "/usr/sbin/modprobe")?;
    image.python(&setup::interpreter().context("find Python")?)?;
    for program in parts.programs.into_iter().chain([parts.battery]) {
        image.stripped(program)?;
    }
    let tests = parts.root.join("tests");
    image.folder(&tests.join("python"), &["__pycache__"])?;
    image.file("/etc/passwd", "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")?;
    for path in ["/etc/hosts", "/etc/resolv.conf"] {
        image.file(path, "")?;
    }
    image.copied_file(Path::new("/etc/ssl/openssl.cnf"))?;
    image.link("/etc/ssl/openssl.cnf", "/usr/lib/ssl/openssl.cnf")?;
    image.modules(&kernel.modules()?, &["net", "lib", "crypto", "drivers/net"])?;
    let places = [parts.root, parts.battery, parts.programs[0], parts.programs[1]];
    image.init(&init(&tests, parts.battery, &places))?;
    image.pack(to)
}

/// What the machine does once it has booted. What it runs lies at `places`, over which nothing is mounted.
fn init(tests: &Path, battery: &Path, places: &[&Path]) -> String {
    let is_free = |folder: &str| !places.iter().any(|place| place.starts_with(folder));
    let folders: Vec<&str> = ["/tmp", "/run"].into_iter().filter(|folder| is_free(folder)).collect();
    let folders = folders.join(" ");
    format!(
        "#!/usr/bin/busybox sh
export PATH=/usr/sbin:/usr/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
for folder in {folders}; do mount -t tmpfs memory $folder; done
busybox chmod 1777 /tmp
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t securityfs security /sys/kernel/security
ip link set lo up
for module in {MODULES}; do modprobe $module || echo no module $module; done
echo kernel $(uname -r), with $(cat /sys/kernel/security/lsm)
cd {tests}
SNOWFENCE_PLAIN=1 {battery} every_program root_of_a_container 2>&1 && echo && echo {PASSED}
poweroff -f
",
        tests = tests.display(),
        battery = battery.display(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_mounted_over_what_is_to_run() {
        let at =
            |root: &str| init(&Path::new(root).join("tests"), Path::new("/x/bypass"), &[Path::new(root)]);
        assert!(at("/home/me/snowfence").contains("for folder in /tmp /run; do mount"));
        assert!(at("/tmp/snowfence").contains("for folder in /run; do mount"));
    }

    #[test]
    fn the_newest_kernel_is_the_one_with_the_highest_numbers() {
        let newest = |names: &[&str]| names.iter().max_by_key(|name| numbers(name)).map(ToString::to_string);
        assert_eq!(
            newest(&["linux-image-6.1.0-9-cloud-amd64", "linux-image-6.1.0-56-cloud-amd64"]).unwrap(),
            "linux-image-6.1.0-56-cloud-amd64"
        );
        assert_eq!(
            newest(&["linux-image-6.12.117+deb12-cloud-amd64", "linux-image-6.12.9+deb12-cloud-amd64"])
                .unwrap(),
            "linux-image-6.12.117+deb12-cloud-amd64"
        );
    }
}
