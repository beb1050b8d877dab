//! What this kernel has of what the capture needs, found out by trying.

use std::{
    io,
    net::{TcpListener, TcpStream},
    os::fd::AsFd as _,
    path::Path,
};

use agent_common::maps;
use aya::{
    maps::{Map, MapType},
    sys::is_map_supported,
    util::KernelVersion,
};
use serde::Serialize;

use super::{
    btf,
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

/// Looks at everything. Needs to be root.
pub fn examine(cgroup: &Path, bpffs: &Path) -> Vec<Finding> {
    let mut findings = vec![privileges(), version(), hierarchy(cgroup), file_system(bpffs)];
    if findings.iter().any(|finding| finding.state == Health::Bad) {
        // Whatever was tried now would fail for the same reason.
        return findings;
    }
    findings.extend([
        verifier(),
        socket_storage(),
        containers(),
        packet_sockets(),
        devices(),
        errors(),
        old_sockets(),
    ]);
    findings
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

fn verifier() -> Finding {
    const CHECK: &str = "verifier";
    let loaded = kernel::trial().and_then(|mut object| {
        programs::verify(&mut object, &kernel::release())?;
        Ok(programs::instructions(&object))
    });
    match loaded {
        Ok(instructions) => {
            let most = instructions.iter().max_by_key(|(_, count)| *count);
            let most = most.map(|(name, count)| format!(", the longest {name} with {count} instructions"));
            Finding::good(
                CHECK,
                format!("accepts all {} programs{}", instructions.len(), most.unwrap_or_default()),
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
        let findings = examine(Path::new("/"), Path::new("/sys/fs/bpf/snowfence"));
        assert!(findings.len() >= 5);
        for finding in findings {
            assert_eq!(finding.state == Health::Good, finding.mend.is_empty(), "{finding:?}");
            assert_eq!(finding.state == Health::Good, finding.weakens.is_empty(), "{finding:?}");
            assert!(!finding.found.is_empty());
        }
    }
}
