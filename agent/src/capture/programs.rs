//! The kernel programs, verified: attached to the covered cgroup, and to the devices by which packets leave.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    os::fd::{AsFd as _, BorrowedFd},
    path::{Path, PathBuf},
};

use agent_common::{Settings as KernelSettings, maps};
use aya::{
    Btf, Ebpf,
    maps::{Array, MapData},
    programs::{
        CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, Program, ProgramError, SchedClassifier,
        TcAttachType,
        links::{FdLink, LinkOrder},
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
    },
    util::KernelVersion,
};

use super::{
    CaptureError,
    devices::{self, Device, Framing},
    kernel::{self, make_directory},
    sys,
};

/// The programs on the cgroup, in the order in which they are attached: whatever records a redirect, and whatever drops
/// what was not redirected, comes before what redirects.
const PROGRAMS: [&str; 10] = [
    "established",
    "getpeername4",
    "getpeername6",
    "socket_created",
    "ingress",
    "egress",
    "sendmsg4",
    "sendmsg6",
    "connect4",
    "connect6",
];
/// The one that needs BPF among the kernel's security modules.
const PACKET_SOCKETS: &str = "packet_socket_created";
const PACKET_SOCKETS_HOOK: &str = "socket_create";
/// The programs on devices: those of the host, and those elsewhere.
const ON_ETHERNET: [&str; 2] = ["perimeter", "perimeter_inside"];
const ON_IP: [&str; 2] = ["perimeter_ip", "perimeter_ip_inside"];
/// What the pins of their links begin with.
const PERIMETER: &str = "perimeter";
/// Where the perimeter is among the filters of a device, on a kernel without tcx: before whatever comes by itself.
const PRIORITY: u16 = 1;
const HANDLE: TcHandle = TcHandle::new(0, 0x534e);

pub(super) struct Programs {
    object: Ebpf,
    settings_map: Array<MapData, KernelSettings>,
    /// What the settings are once everything is attached.
    settings: KernelSettings,
    links: PathBuf,
    /// Whether the links that are pinned are on the cgroup that is to be covered.
    same_cgroup: bool,
    /// Devices with the perimeter, by the cookie of their namespace and their index there.
    guarded: HashMap<(u64, u32), String>,
}

impl Programs {
    pub(super) fn new(
        object: Ebpf,
        settings_map: Array<MapData, KernelSettings>,
        settings: KernelSettings,
        links: PathBuf,
        same_cgroup: bool,
    ) -> Result<Self, CaptureError> {
        make_directory(&links)?;
        Ok(Self { object, settings_map, settings, links, same_cgroup, guarded: HashMap::new() })
    }

    /// Attaches every program to the covered cgroup and pins its link, or puts it in the place of an earlier agent's.
    pub(super) fn attach(&mut self, cgroup: BorrowedFd<'_>) -> Result<(), CaptureError> {
        for name in PROGRAMS {
            self.attach_one(name, cgroup)?;
        }
        if program(&mut self.object, PACKET_SOCKETS)?.fd().is_ok() {
            self.attach_one(PACKET_SOCKETS, cgroup)?;
        }
        self.settings_map.set(0, self.settings, 0).map_err(CaptureError::map(maps::SETTINGS))
    }

    fn attach_one(&mut self, name: &'static str, cgroup: BorrowedFd<'_>) -> Result<(), CaptureError> {
        let failed = |source| CaptureError::Attach { program: name, source };
        let program = program(&mut self.object, name)?;
        let pin = self.links.join(name);
        if self.same_cgroup && pin.exists() {
            let fd = program.fd().map_err(|error| failed(told(&error)))?;
            match sys::open_pin(&pin).and_then(|link| sys::replace_program(link.as_fd(), fd.as_fd())) {
                Ok(()) => return Ok(()),
                // The cgroup was removed and made again, and the link died with it.
                Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        let link = attach_link(program, cgroup).map_err(|error| failed(told(&error)))?;
        pin_over(link, &pin).map_err(failed)
    }

    /// Puts the perimeter on the devices of the namespace of the calling thread by which packets leave the host, and
    /// forgets those that are gone. Returns the names of those that it cannot be put on, each with the reason.
    pub(super) fn guard(&mut self, cookie: u64, in_hosts_namespace: bool) -> io::Result<Vec<String>> {
        let devices = devices::list()?;
        let uplinks = devices.iter().filter(|device| device.is_uplink(in_hosts_namespace));
        let mut failures = Vec::new();
        for device in uplinks {
            if let Err(error) = self.guard_device(cookie, device, in_hosts_namespace) {
                failures.push(format!("{}: {error}", device.name));
            }
        }
        let is_there = |index: u32| devices.iter().any(|device| device.index == index);
        self.leave(cookie, &|index| !is_there(index));
        Ok(failures)
    }

    /// Forgets the devices of a namespace.
    pub(super) fn leave(&mut self, cookie: u64, gone: &dyn Fn(u32) -> bool) {
        let gone: Vec<u32> = self
            .guarded
            .keys()
            .filter(|(owner, index)| *owner == cookie && gone(*index))
            .map(|(_, index)| *index)
            .collect();
        for index in gone {
            self.guarded.remove(&(cookie, index));
            let _ = fs::remove_file(self.pin_on_device(cookie, index));
        }
    }

    /// Names of the devices that have the perimeter.
    pub(super) fn guarded(&self) -> Vec<String> {
        let mut names: Vec<String> = self.guarded.values().cloned().collect();
        names.sort();
        names
    }

    /// Whether the kernel lets programs refuse packet sockets.
    pub(super) fn refuse_packet_sockets(&self) -> bool {
        self.object.program(PACKET_SOCKETS).is_some_and(|program| program.fd().is_ok())
    }

    fn guard_device(&mut self, cookie: u64, device: &Device, is_hosts: bool) -> io::Result<()> {
        let [of_host, inside] = match device.framing {
            Framing::Ethernet => ON_ETHERNET,
            Framing::Ip => ON_IP,
            Framing::Loopback => return Ok(()),
            Framing::Other => return Err(io::Error::other("its packets begin with something unknown")),
        };
        let name = if is_hosts { of_host } else { inside };
        let pin = self.pin_on_device(cookie, device.index);
        let is_guarded = self.guarded.contains_key(&(cookie, device.index));
        let Program::SchedClassifier(program) =
            program(&mut self.object, name).map_err(|error| told(&error))?
        else {
            return Err(io::Error::other(missing(name)));
        };
        if has_tcx() {
            // Nobody but root of the host can take a link away.
            if is_guarded {
                return Ok(());
            }
            attach_tcx(program, device, &pin)?;
        } else {
            attach_filter(program, device).map_err(|error| told(&error))?;
        }
        if !is_guarded {
            tracing::info!(device = device.name, netns_cookie = cookie, "the perimeter is on a device");
            self.guarded.insert((cookie, device.index), device.name.clone());
        }
        Ok(())
    }

    fn pin_on_device(&self, cookie: u64, index: u32) -> PathBuf {
        self.links.join(format!("{PERIMETER}-{cookie}-{index}"))
    }
}

/// Has the kernel verify every program. The maps must all be there still: programs name them by their descriptors.
pub(super) fn verify(object: &mut Ebpf, release: &str) -> Result<(), CaptureError> {
    for name in PROGRAMS.into_iter().chain(ON_ETHERNET).chain(ON_IP) {
        let loaded = match program(object, name)? {
            Program::SockOps(program) => program.load(),
            Program::CgroupSock(program) => program.load(),
            Program::CgroupSockAddr(program) => program.load(),
            Program::CgroupSkb(program) => program.load(),
            Program::SchedClassifier(program) => program.load(),
            _ => return Err(missing(name)),
        };
        loaded.map_err(|error| CaptureError::rejected(name, release, &error))?;
    }
    load_packet_sockets(object).unwrap_or_else(|error| {
        tracing::warn!(%error, "packet sockets are not refused: what they send is met at the perimeter (see `snowfence doctor`)");
    });
    Ok(())
}

fn load_packet_sockets(object: &mut Ebpf) -> Result<(), CaptureError> {
    let failed = |error| CaptureError::Attach { program: PACKET_SOCKETS, source: error };
    let btf = Btf::from_sys_fs().map_err(|error| failed(told(&error)))?;
    let Program::LsmCgroup(program) = program(object, PACKET_SOCKETS)? else {
        return Err(missing(PACKET_SOCKETS));
    };
    program.load(PACKET_SOCKETS_HOOK, &btf).map_err(|error| match error {
        // What the verifier says besides is in more than one line, and nothing where the kernel refuses at once.
        ProgramError::LoadError { io_error, .. } => failed(io_error),
        other => failed(told(&other)),
    })
}

/// Takes the perimeter off the devices of the namespace of the calling thread, where it is a filter and not a link.
/// Returns the names of the devices that had it.
pub(super) fn unguard() -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for device in devices::list()? {
        for program in ON_ETHERNET.into_iter().chain(ON_IP) {
            if tc::qdisc_detach_program(&device.name, TcAttachType::Egress, program).is_ok() {
                names.push(device.name.clone());
            }
        }
    }
    Ok(names)
}

/// Whether programs on devices are links, which only root of the host can take away: since Linux 6.6.
pub(super) fn has_tcx() -> bool {
    KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0))
}

/// Whether the kernel lets programs refuse packet sockets; the reason if not.
pub(super) fn check_packet_sockets() -> Result<(), String> {
    let mut object = kernel::trial().map_err(|error| error.to_string())?;
    load_packet_sockets(&mut object).map_err(|error| error.to_string())
}

/// How many instructions the verifier went through for each loaded program, where the kernel says so.
pub(super) fn instructions(object: &Ebpf) -> BTreeMap<String, u32> {
    let loaded = object.programs().filter_map(|(name, program)| Some((name, program.info().ok()?)));
    loaded
        .map(|(name, info)| (name.to_owned(), info.verified_instruction_count().unwrap_or_default()))
        .collect()
}

fn program<'a>(object: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Program, CaptureError> {
    object.program_mut(name).ok_or_else(|| missing(name))
}

fn missing(program: &'static str) -> CaptureError {
    let source = io::Error::other("the embedded object has no such program: run `cargo xtask build`");
    CaptureError::Attach { program, source }
}

/// Attaches a loaded program. Links share a cgroup by their nature; the kernel wants no flag that says so.
fn attach_link(program: &mut Program, cgroup: BorrowedFd<'_>) -> Result<FdLink, ProgramError> {
    macro_rules! attach {
        ($program:expr $(, $option:expr)*) => {{
            let id = $program.attach(cgroup $(, $option)*)?;
            $program.take_link(id)?.try_into().map_err(|_| ProgramError::NotAttached)
        }};
    }
    let mode = CgroupAttachMode::Single;
    match program {
        Program::SockOps(program) => attach!(program, mode),
        Program::CgroupSock(program) => attach!(program, mode),
        Program::CgroupSockAddr(program) => attach!(program, mode),
        Program::CgroupSkb(program) => {
            let direction = direction(program);
            attach!(program, direction, mode)
        }
        Program::LsmCgroup(program) => attach!(program).map(|link: FdLink| link),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

fn direction(program: &CgroupSkb) -> CgroupSkbAttachType {
    program.expected_attach_type().unwrap_or(CgroupSkbAttachType::Egress)
}

fn attach_tcx(program: &mut SchedClassifier, device: &Device, pin: &Path) -> io::Result<()> {
    if pin.exists() {
        let fd = program.fd().map_err(|error| told(&error))?;
        match sys::open_pin(pin).and_then(|link| sys::replace_program(link.as_fd(), fd.as_fd())) {
            Ok(()) => return Ok(()),
            // The link of a device that had this number before.
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
            Err(error) => return Err(error),
        }
    }
    let options = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program
        .attach_with_options(&device.name, TcAttachType::Egress, options)
        .map_err(|error| told(&error))?;
    let link = program.take_link(id).map_err(|error| told(&error))?;
    pin_over(link.try_into().map_err(|error| told(&error))?, pin)
}

/// Makes the program a filter of the device, or puts it in the place of an earlier agent's.
fn attach_filter(program: &mut SchedClassifier, device: &Device) -> Result<(), ProgramError> {
    let earlier = SchedClassifierLink::attached(&device.name, TcAttachType::Egress, PRIORITY, HANDLE, None)
        .map_err(TcError::IoError)?;
    let id = if let Ok(id) = program.attach_to_link(earlier) {
        id
    } else {
        // It may be there already. If it is not for another reason, attaching fails and says so.
        let _ = tc::qdisc_add_clsact(&device.name);
        let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
        program.attach_with_options(&device.name, TcAttachType::Egress, TcAttachOptions::Netlink(options))?
    };
    // It would take the filter away when dropped.
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

/// An error with all that is behind it, in one line.
fn told(error: &dyn std::error::Error) -> io::Error {
    let causes = std::iter::successors(Some(error), |error| error.source());
    io::Error::other(causes.map(ToString::to_string).collect::<Vec<_>>().join(": "))
}

/// Pinned beside and then renamed over: an earlier link goes only when the new one is in place.
fn pin_over(link: FdLink, pin: &Path) -> io::Result<()> {
    let mut next = pin.as_os_str().to_owned();
    next.push("_next");
    let next = PathBuf::from(next);
    let _ = fs::remove_file(&next);
    link.pin(&next).map_err(|error| told(&error))?;
    fs::rename(&next, pin)
}
