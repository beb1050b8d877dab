//! What this kernel has of what the capture needs, found out by trying.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{TcpListener, TcpStream},
    os::fd::AsFd as _,
    path::Path,
};

use agent_common::maps;
use aya::{
    maps::{Map, MapInfo, MapType},
    sys::is_map_supported,
    util::KernelVersion,
};
use serde::Serialize;

use super::{
    CaptureError, btf,
    host::{self, Covered},
    kernel, programs, sockets,
};

/// What was found of one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked for.
    pub check: &'static str,
    pub state: Health,
    /// What was found.
    pub found: String,
    /// What it weakens that it is so; empty where it weakens nothing.
    pub weakens: &'static str,
    /// How to mend it; empty where there is nothing to mend.
    pub mend: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    Good,
    /// The agent works, with less.
    Weak,
    /// The agent does not work.
    Bad,
}

/// What everything is like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Examination {
    pub findings: Vec<Finding>,
    /// Where the programs could be loaded.
    pub cost: Option<Cost>,
}

/// What the programs cost the kernel, whether they have anything to do or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// By program: the instructions that the verifier went through, of which there may be a million.
    pub verified_instructions: BTreeMap<String, u32>,
    /// By map: its memory when it is full, in bytes.
    pub map_bytes: BTreeMap<String, u64>,
}

/// Looks at everything. Needs to be root.
pub fn examine(cgroup: &Path, bpffs: &Path) -> Examination {
    let mut findings = vec![privileges(), version(), hierarchy(cgroup), file_system(bpffs)];
    if findings.iter().any(|finding| finding.state == Health::Bad) {
        // Whatever was tried now would fail for the same reason.
        return Examination { findings, cost: None };
    }
    let cost = load();
    findings.push(verifier(cost.as_ref()));
    findings.extend([socket_storage(), containers(), packet_sockets(), devices(), errors(), old_sockets()]);
    Examination { findings, cost: cost.ok() }
}

impl Finding {
    fn good(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, state: Health::Good, found: found.into(), weakens: "", mend: "" }
    }

    fn bad(check: &'static str, found: impl Into<String>, mend: &'static str) -> Self {
        let weakens = "the agent cannot start";
        Self { check, state: Health::Bad, found: found.into(), weakens, mend }
    }
}

fn privileges() -> Finding {
    const CHECK: &str = "privileges";
    match host::require_capabilities() {
        Ok(()) => Finding::good(CHECK, "all capabilities that are needed"),
        Err(error) => Finding::bad(
            CHECK,
            error.to_string(),
            "run this as root on the host; in a container, with hostPID, hostNetwork and the capabilities of deploy/kubernetes",
        ),
    }
}

fn version() -> Finding {
    const CHECK: &str = "kernel";
    let release = kernel::release();
    let at_least = |major, minor| {
        KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(major, minor, 0))
    };
    if !at_least(5, 15) {
        return Finding::bad(
            CHECK,
            format!("{release}, which is too old"),
            "upgrade to 5.15, better to 6.6 or newer",
        );
    }
    if at_least(6, 1) {
        return Finding::good(CHECK, release);
    }
    Finding {
        state: Health::Weak,
        weakens: "nobody has tested the agent on a kernel older than 6.1",
        mend: "upgrade to 6.1 or newer",
        ..Finding::good(CHECK, release)
    }
}

fn hierarchy(cgroup: &Path) -> Finding {
    const CHECK: &str = "cgroup v2";
    match host::cgroup_root().and_then(|root| Covered::find(&root, cgroup)) {
        Ok(covered) => Finding::good(CHECK, format!("covering {}", covered.directory.display())),
        Err(error) => Finding::bad(
            CHECK,
            error.to_string(),
            "mount the hierarchy with its root (mount -t cgroup2 none /sys/fs/cgroup/unified), and set capture.cgroup to a group that exists",
        ),
    }
}

fn file_system(bpffs: &Path) -> Finding {
    const CHECK: &str = "BPF file system";
    let parent = bpffs.parent().unwrap_or(bpffs);
    match host::is_bpffs(parent) {
        Ok(true) => Finding::good(CHECK, parent.display().to_string()),
        Ok(false) => {
            Finding::good(CHECK, format!("not mounted at {} yet: the agent mounts it", parent.display()))
        }
        Err(error) => Finding::bad(CHECK, error.to_string(), "mount it: mount -t bpf bpf /sys/fs/bpf"),
    }
}

fn load() -> Result<Cost, CaptureError> {
    let mut object = kernel::trial()?;
    programs::verify(&mut object, &kernel::release())?;
    let map_bytes = map_bytes().map_err(CaptureError::io("read the sizes of the maps"))?;
    Ok(Cost { verified_instructions: programs::instructions(&object), map_bytes })
}

/// The memory of the maps that this process has open, which are those of the programs just loaded.
fn map_bytes() -> io::Result<BTreeMap<String, u64>> {
    const KIND: &str = "anon_inode:bpf-map";
    let mut sizes = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        if !fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == KIND) {
            continue;
        }
        let text = fs::read_to_string(Path::new("/proc/self/fdinfo").join(entry.file_name()))?;
        let number = |field: &str| {
            let mut fields = text.lines().filter_map(|line| line.split_once(':'));
            fields.find(|(name, _)| *name == field).and_then(|(_, value)| value.trim().parse::<u64>().ok())
        };
        let id = number("map_id").and_then(|id| u32::try_from(id).ok());
        let info = id.and_then(|id| MapInfo::from_id(id).ok());
        let name = info.as_ref().and_then(|info| info.name_as_str());
        if let (Some(name), Some(bytes)) = (name, number("memlock")) {
            sizes.insert(name.to_owned(), bytes);
        }
    }
    Ok(sizes)
}

fn verifier(cost: Result<&Cost, &CaptureError>) -> Finding {
    const CHECK: &str = "verifier";
    const MEBIBYTE: f64 = 1_048_576.0;
    match cost {
        Ok(Cost { verified_instructions, map_bytes }) => {
            let most = verified_instructions.iter().max_by_key(|(_, count)| **count);
            let most = most.map(|(name, count)| format!(", the longest {name} with {count} instructions"));
            #[allow(clippy::cast_precision_loss, reason = "megabytes, with one digit")]
            let memory = map_bytes.values().sum::<u64>() as f64 / MEBIBYTE;
            Finding::good(
                CHECK,
                format!(
                    "accepts all {} programs{}; their maps take up to {memory:.1} MiB",
                    verified_instructions.len(),
                    most.unwrap_or_default()
                ),
            )
        }
        Err(error) => Finding::bad(
            CHECK,
            error.to_string(),
            "report this, with the kernel's release; another kernel may do",
        ),
    }
}

fn socket_storage() -> Finding {
    const CHECK: &str = "marks on sockets";
    let kinds = [
        (MapType::SkStorage, maps::OWN),
        (MapType::RingBuf, maps::EVENTS),
        (MapType::LpmTrie, maps::ENDPOINTS4),
    ];
    let missing = kinds.iter().find(|(kind, _)| !is_map_supported(*kind).unwrap_or(false));
    match missing {
        None => Finding::good(CHECK, "socket storage, ring buffers and tries"),
        Some((_, name)) => Finding::bad(
            CHECK,
            format!("no map for {name}"),
            "a kernel with CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF",
        ),
    }
}

fn containers() -> Finding {
    const CHECK: &str = "type information";
    match btf::task_layout() {
        Ok(_) => Finding::good(CHECK, "containers can be told from the host"),
        Err(error) => Finding {
            check: CHECK,
            state: Health::Weak,
            found: error.to_string(),
            weakens: "raw and packet sockets are not refused: what they send is met by the guard and at the perimeter",
            mend: "a kernel with CONFIG_DEBUG_INFO_BTF",
        },
    }
}

fn packet_sockets() -> Finding {
    const CHECK: &str = "packet sockets";
    match programs::check_packet_sockets() {
        Ok(()) => Finding::good(CHECK, "refused in containers, by BPF among the security modules"),
        Err(error) => Finding {
            check: CHECK,
            state: Health::Weak,
            found: format!("not refused: {error}"),
            weakens: "a container with NET_RAW can write packets; those to Snowflake's known addresses, and those that begin with its names, are dropped at the perimeter",
            mend: "boot a kernel of 6.0 or newer with CONFIG_BPF_LSM and `bpf` in the list of lsm= (see /sys/kernel/security/lsm)",
        },
    }
}

fn devices() -> Finding {
    const CHECK: &str = "perimeter";
    if programs::has_tcx() {
        return Finding::good(CHECK, "by tcx links, which only root of the host can take away");
    }
    Finding {
        check: CHECK,
        state: Health::Weak,
        found: "by filters of a clsact queue".to_owned(),
        weakens: "root of a container with NET_ADMIN can take the filter off devices of its own (macvlan, ipvlan); it is put back when that is noticed",
        mend: "a kernel of 6.6 or newer",
    }
}

fn errors() -> Finding {
    const CHECK: &str = "errors of connect";
    if kernel::can_set_error() {
        return Finding::good(CHECK, "a refused connection ends in ECONNREFUSED");
    }
    Finding {
        check: CHECK,
        state: Health::Weak,
        found: "no bpf_set_retval".to_owned(),
        weakens: "while the agent is stuck, connections end in EPERM and not in ECONNREFUSED",
        mend: "a kernel of 5.18 or newer",
    }
}

/// Ends a connection of this very process, to see whether it can be done.
fn old_sockets() -> Finding {
    const CHECK: &str = "older connections";
    let tried = || -> io::Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let client = TcpStream::connect(address)?;
        let local = client.local_addr()?;
        let object = kernel::trial().map_err(io::Error::other)?;
        let Some(Map::SkStorage(marks)) = object.map(maps::OWN) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let found = sockets::list(marks.fd().as_fd())?;
        let own = found.iter().find(|socket| socket.local == local && socket.peer == address);
        sockets::destroy(own.ok_or(io::ErrorKind::NotFound)?)
    };
    match tried() {
        Ok(()) => Finding::good(CHECK, "can be ended"),
        Err(error) => Finding {
            check: CHECK,
            state: Health::Weak,
            found: format!("cannot be ended: {error}"),
            weakens: "connections to Snowflake that are older than the agent stay open, and what they send is dropped; a client whose first packet met the guard waits for its own time-out",
            mend: "a kernel with CONFIG_INET_DIAG_DESTROY, and its module inet_diag (tcp_diag)",
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_not_good_says_what_it_costs_and_how_to_mend_it() {
        let Examination { findings, .. } = examine(Path::new("/"), Path::new("/sys/fs/bpf/snowfence"));
        assert!(findings.len() >= 5);
        for finding in findings {
            assert_eq!(finding.state == Health::Good, finding.mend.is_empty(), "{finding:?}");
            assert_eq!(finding.state == Health::Good, finding.weakens.is_empty(), "{finding:?}");
            assert!(!finding.found.is_empty());
        }
    }
}
