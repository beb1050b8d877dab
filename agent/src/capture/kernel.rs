//! Loads the kernel programs, takes over what an earlier agent left pinned, and attaches.

use std::{
    fs, io,
    os::fd::{AsFd as _, BorrowedFd},
    path::{Path, PathBuf},
};

use agent_common::{LAYOUT, Settings as KernelSettings, maps};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, HashMap, Map, MapData, MapError, MapInfo, PerCpuArray, RingBuf},
    programs::{CgroupAttachMode, Program, ProgramError, links::FdLink},
    util::KernelVersion,
};
use aya_log::EbpfLogger;
use log::Log;

use super::{CaptureError, Settings, endpoints::Endpoints, exempt::Exemptor, flows::Flows, sys};

/// The programs in the order in which they are attached: whatever records a redirect comes before what redirects.
const PROGRAMS: [&str; 6] =
    ["established", "getpeername4", "getpeername6", "socket_created", "connect4", "connect6"];
const LINKS: &str = "links";

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/snowfence.bpf.o"));

/// The maps, in use, and the programs, to be attached.
pub(super) struct Kernel {
    pub(super) endpoints: Endpoints,
    pub(super) exemptor: Exemptor,
    pub(super) flows: Flows,
    pub(super) namespaces: HashMap<MapData, u64, u8>,
    pub(super) counters: PerCpuArray<MapData, u64>,
    pub(super) events: RingBuf<MapData>,
    pub(super) programs: Programs,
    /// What the programs say of failures.
    pub(super) messages: EbpfLogger<&'static dyn Log>,
}

/// The programs, verified by the kernel.
pub(super) struct Programs {
    object: Ebpf,
    settings_map: Array<MapData, KernelSettings>,
    /// What the settings are once everything is attached.
    settings: KernelSettings,
    links: PathBuf,
    /// Whether the links that are pinned are on the cgroup that is to be covered.
    same_cgroup: bool,
}

/// What [`super::detach`] took down.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Detached {
    /// Names of the kernel programs that were attached.
    pub programs: Vec<String>,
    /// Names of the maps that were pinned.
    pub maps: Vec<String>,
}

impl Kernel {
    /// Loads the programs over the maps that are pinned, or over new ones. The caller holds the lock.
    pub(super) fn load(settings: &Settings, cgroup_id: u64) -> Result<Self, CaptureError> {
        if OBJECT.is_empty() {
            return Err(CaptureError::NotBuilt);
        }
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
        if KernelVersion::current().is_ok_and(|version| version < KernelVersion::new(5, 15, 0)) {
            return Err(CaptureError::KernelTooOld { release });
        }
        let earlier = earlier_settings(&settings.bpffs)?;
        let mut programs = EbpfLoader::new()
            .default_map_pin_directory(&settings.bpffs)
            .load(OBJECT)
            .map_err(|source| CaptureError::Programs { source })?;
        verify(&mut programs, &release)?;
        let messages = EbpfLogger::init(&mut programs).map_err(|error| {
            CaptureError::io("read the kernel programs' messages")(io::Error::other(error))
        })?;

        let same_cgroup = earlier.is_some_and(|earlier| earlier.cgroup == cgroup_id);
        let mut settings_map: Array<MapData, KernelSettings> = take(&mut programs, maps::SETTINGS)?;
        let kernel_settings = KernelSettings {
            layout: LAYOUT,
            agent: std::process::id(),
            // Written when everything is attached to it: until then nobody may believe that it is.
            cgroup: if same_cgroup { cgroup_id } else { 0 },
            listen_port: settings.listen_port,
            reserved: [0; 3],
        };
        settings_map.set(0, kernel_settings, 0).map_err(CaptureError::map(maps::SETTINGS))?;
        let mut ports: HashMap<MapData, u16, u8> = take(&mut programs, maps::PORTS)?;
        replace_keys(&mut ports, maps::PORTS, &settings.ports)?;
        // Whoever was exempt and whatever was listened on before belonged to an agent that is gone.
        let mut exempt: HashMap<MapData, u64, u8> = take(&mut programs, maps::EXEMPT)?;
        replace_keys(&mut exempt, maps::EXEMPT, &[])?;
        let mut namespaces: HashMap<MapData, u64, u8> = take(&mut programs, maps::NAMESPACES)?;
        replace_keys(&mut namespaces, maps::NAMESPACES, &[])?;
        let endpoints =
            Endpoints::new(take(&mut programs, maps::ENDPOINTS4)?, take(&mut programs, maps::ENDPOINTS6)?)?;
        endpoints.declare(&settings.networks)?;

        Ok(Self {
            endpoints,
            exemptor: Exemptor::new(exempt),
            flows: Flows::new(take(&mut programs, maps::FLOWS)?),
            namespaces,
            counters: take(&mut programs, maps::COUNTERS)?,
            events: take(&mut programs, maps::EVENTS)?,
            programs: Programs {
                object: programs,
                settings_map,
                settings: KernelSettings { cgroup: cgroup_id, ..kernel_settings },
                links: settings.bpffs.join(LINKS),
                same_cgroup,
            },
            messages,
        })
    }
}

impl Programs {
    /// Attaches every program to the covered cgroup and pins its link, or puts it in the place of an earlier agent's.
    pub(super) fn attach(mut self, cgroup: BorrowedFd<'_>) -> Result<(), CaptureError> {
        match fs::create_dir(&self.links) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(CaptureError::io(format!("create {}", self.links.display()))(error));
            }
            _ => {}
        }
        for program in PROGRAMS {
            self.attach_one(program, cgroup)?;
        }
        self.settings_map.set(0, self.settings, 0).map_err(CaptureError::map(maps::SETTINGS))
    }

    fn attach_one(&mut self, name: &'static str, cgroup: BorrowedFd<'_>) -> Result<(), CaptureError> {
        let failed = |source| CaptureError::Attach { program: name, source };
        let program = self.object.program_mut(name).ok_or_else(|| missing(name))?;
        let pin = self.links.join(name);
        if self.same_cgroup && pin.exists() {
            let fd = program.fd().map_err(|error| failed(io::Error::other(error)))?;
            match sys::open_pin(&pin).and_then(|link| sys::replace_program(link.as_fd(), fd.as_fd())) {
                Ok(()) => return Ok(()),
                // The cgroup was removed and made again, and the link died with it.
                Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        let link = attach_link(program, cgroup).map_err(|error| failed(io::Error::other(error)))?;
        // Pinned beside and then renamed over: an earlier link goes only when the new one is in place.
        let next = self.links.join(format!("{name}_next"));
        let _ = fs::remove_file(&next);
        link.pin(&next).map_err(|error| failed(io::Error::other(error)))?;
        fs::rename(&next, &pin).map_err(failed)
    }
}

/// The process id of the agent that the maps name.
pub(super) fn pid_of_agent(bpffs: &Path) -> u32 {
    earlier_settings(bpffs).ok().flatten().map_or(0, |settings| settings.agent)
}

/// Removes every pin, links first, and the directories.
pub(super) fn remove_pins(bpffs: &Path) -> Result<Detached, CaptureError> {
    let links = bpffs.join(LINKS);
    Ok(Detached { programs: remove_directory(&links)?, maps: remove_directory(bpffs)? })
}

/// Has the kernel verify every program. The maps must all be there still: programs name them by their descriptors.
fn verify(programs: &mut Ebpf, release: &str) -> Result<(), CaptureError> {
    for name in PROGRAMS {
        let loaded = match programs.program_mut(name).ok_or_else(|| missing(name))? {
            Program::SockOps(program) => program.load(),
            Program::CgroupSock(program) => program.load(),
            Program::CgroupSockAddr(program) => program.load(),
            _ => return Err(missing(name)),
        };
        loaded.map_err(|error| CaptureError::rejected(name, release, &error))?;
    }
    Ok(())
}

fn missing(program: &'static str) -> CaptureError {
    let source = io::Error::other("the embedded object has no such program: run `cargo xtask build`");
    CaptureError::Attach { program, source }
}

/// Attaches a loaded program. Links share a cgroup by their nature; the kernel wants no flag that says so.
fn attach_link(program: &mut Program, cgroup: BorrowedFd<'_>) -> Result<FdLink, ProgramError> {
    macro_rules! attach {
        ($program:expr) => {{
            let id = $program.attach(cgroup, CgroupAttachMode::Single)?;
            $program.take_link(id)?.try_into().map_err(|_| ProgramError::NotAttached)
        }};
    }
    match program {
        Program::SockOps(program) => attach!(program),
        Program::CgroupSock(program) => attach!(program),
        Program::CgroupSockAddr(program) => attach!(program),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// The settings in the pinned maps, if there are any; an error if they are of another layout.
fn earlier_settings(bpffs: &Path) -> Result<Option<KernelSettings>, CaptureError> {
    let pin = bpffs.join(maps::SETTINGS);
    if !pin.exists() {
        return Ok(None);
    }
    let failed = CaptureError::map(maps::SETTINGS);
    let mismatch = |found| CaptureError::Layout { bpffs: bpffs.to_owned(), found, expected: LAYOUT };
    let info = MapInfo::from_pin(&pin).map_err(&failed)?;
    if usize::try_from(info.value_size()) != Ok(size_of::<KernelSettings>()) {
        return Err(mismatch(0));
    }
    let map = MapData::from_pin(&pin).and_then(Map::from_map_data).map_err(&failed)?;
    let settings =
        Array::<MapData, KernelSettings>::try_from(map).and_then(|map| map.get(&0, 0)).map_err(&failed)?;
    match settings.layout {
        LAYOUT => Ok(Some(settings)),
        // Made by an agent that ended before it wrote anything.
        0 => Ok(None),
        found => Err(mismatch(found)),
    }
}

fn take<T: TryFrom<Map, Error = MapError>>(
    programs: &mut Ebpf,
    name: &'static str,
) -> Result<T, CaptureError> {
    programs
        .take_map(name)
        .ok_or(MapError::InvalidName { name: name.to_owned() })
        .and_then(T::try_from)
        .map_err(CaptureError::map(name))
}

/// Makes `keys` the only keys of the map; those that stay are never missing in between.
fn replace_keys<K: Pod + PartialEq>(
    map: &mut HashMap<MapData, K, u8>,
    name: &'static str,
    keys: &[K],
) -> Result<(), CaptureError> {
    let failed = CaptureError::map(name);
    let stale: Vec<K> = map.keys().filter_map(Result::ok).filter(|key| !keys.contains(key)).collect();
    keys.iter().try_for_each(|key| map.insert(key, 0, 0)).map_err(&failed)?;
    stale.iter().try_for_each(|key| map.remove(key)).map_err(&failed)
}

/// Removes what is in the directory, and then itself. Returns the names; none if there is no such directory.
fn remove_directory(directory: &Path) -> Result<Vec<String>, CaptureError> {
    let failed = || CaptureError::io(format!("remove {}", directory.display()));
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed()(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed())?;
        fs::remove_file(entry.path()).map_err(failed())?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    fs::remove_dir(directory).map_err(failed())?;
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_removed_links_first_and_a_second_time_there_are_none() {
        let directory = tempfile::tempdir().unwrap();
        let bpffs = directory.path().join("snowfence");
        fs::create_dir_all(bpffs.join(LINKS)).unwrap();
        for file in ["links/connect4", "links/connect6_next", "SETTINGS", "FLOWS"] {
            fs::write(bpffs.join(file), "").unwrap();
        }
        let removed = remove_pins(&bpffs).unwrap();
        assert_eq!(removed.programs, ["connect4", "connect6_next"]);
        assert_eq!(removed.maps, ["FLOWS", "SETTINGS"]);
        assert!(!bpffs.exists());
        assert_eq!(remove_pins(&bpffs).unwrap(), Detached::default());
    }
}
