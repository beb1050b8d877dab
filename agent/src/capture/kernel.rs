//! Loads the kernel programs over the maps that an earlier agent left pinned, or over new ones.

use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use agent_common::{
    LAYOUT, Rate, RateKey, SUFFIX_LENGTHS, SUFFIX_SIZE, Scope as KernelScope, Settings as KernelSettings,
    Suffix, TaskLayout, globals, maps,
};
use aya::{
    Ebpf, EbpfLoader, Pod, VerifierLogLevel,
    maps::{Array, HashMap, Map, MapData, MapError, MapInfo, PerCpuArray, PerCpuHashMap, RingBuf},
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported},
    util::KernelVersion,
};
use aya_log::EbpfLogger;
use log::Log;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::{
    CaptureError, Settings, btf,
    endpoints::Endpoints,
    flows::Flows,
    host::Covered,
    own::Marker,
    programs::{self, Programs},
    scopes, sys,
};

/// Directory of the links, beside the maps.
pub(super) const LINKS: &str = "links";
/// The agent is believed to be alive for this long after a heartbeat.
const PATIENCE: Duration = Duration::from_secs(2);

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/snowfence.bpf.o"));

/// The maps, in use, and the programs, to be attached.
pub(super) struct Kernel {
    pub(super) endpoints: Endpoints,
    pub(super) marker: Marker,
    /// The map of the marks, for asking the kernel about sockets.
    pub(super) marks: OwnedFd,
    pub(super) flows: Flows,
    pub(super) scopes: HashMap<MapData, u64, KernelScope>,
    pub(super) namespaces: HashMap<MapData, u64, u8>,
    pub(super) heartbeat: Array<MapData, u64>,
    pub(super) counters: PerCpuArray<MapData, u64>,
    pub(super) rates: PerCpuHashMap<MapData, RateKey, Rate>,
    pub(super) events: RingBuf<MapData>,
    pub(super) dns: RingBuf<MapData>,
    pub(super) programs: Programs,
    /// What the programs say of failures.
    pub(super) messages: EbpfLogger<&'static dyn Log>,
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
    /// Loads and verifies the programs. The caller holds the lock.
    pub(super) fn load(settings: &Settings, covered: &Covered) -> Result<Self, CaptureError> {
        if OBJECT.is_empty() {
            return Err(CaptureError::NotBuilt);
        }
        let release = release();
        if KernelVersion::current().is_ok_and(|version| version < KernelVersion::new(5, 15, 0)) {
            return Err(CaptureError::KernelTooOld { release });
        }
        let pins = pins(&settings.bpffs);
        make_directory(&pins)?;
        let earlier = earlier_settings(&pins)?;
        let can_set_error = u8::from(can_set_error());
        let layout = task_layout();
        let mut object = EbpfLoader::new()
            .default_map_pin_directory(&pins)
            .map_pin_path(maps::OWN, pins.join(maps::OWN))
            .override_global(globals::CAN_SET_ERROR, &can_set_error, true)
            .override_global(globals::TASK_LAYOUT, &layout, true)
            .load(OBJECT)
            .map_err(|source| CaptureError::Programs { source })?;
        programs::verify(&mut object, &release)?;
        let messages = EbpfLogger::init(&mut object).map_err(|error| {
            CaptureError::io("read the kernel programs' messages")(io::Error::other(error))
        })?;
        let take_marks = sys::open_pin(&pins.join(maps::OWN));
        let marks =
            take_marks.map_err(CaptureError::io(format!("open {}", pins.join(maps::OWN).display())))?;

        let same_cgroup = earlier.is_some_and(|earlier| earlier.cgroup == covered.id);
        let kernel_settings = KernelSettings {
            layout: LAYOUT,
            agent: std::process::id(),
            // Written when everything is attached to it: until then nobody may believe that it is.
            cgroup: if same_cgroup { covered.id } else { 0 },
            cgroup_level: covered.level,
            listen_port: settings.listen_port,
            reserved: 0,
            scope: scopes::value(settings.mode, settings.raw_sockets),
            // Also where nothing is covered: what the perimeter lets pass is noted by the guard.
            scoped: u8::from(!settings.scopes.is_empty() || settings.mode == crate::config::Mode::Off),
            reserved2: [0; 3],
            patience: u64::try_from(PATIENCE.as_nanos()).unwrap_or(u64::MAX),
            suffix_lengths: suffix_lengths(&settings.suffixes),
        };
        let mut settings_map: Array<MapData, KernelSettings> = take(&mut object, maps::SETTINGS)?;
        let mut suffixes: HashMap<MapData, Suffix, u8> = take(&mut object, maps::SUFFIXES)?;
        let keys: Vec<Suffix> = settings.suffixes.iter().map(|suffix| suffix_key(suffix)).collect();
        replace_keys(&mut suffixes, maps::SUFFIXES, &keys)?;
        settings_map.set(0, kernel_settings, 0).map_err(CaptureError::map(maps::SETTINGS))?;
        write_ports(&mut take(&mut object, maps::PORTS)?, &settings.ports)?;
        // Whatever was listened on before belonged to an agent that is gone.
        let mut namespaces: HashMap<MapData, u64, u8> = take(&mut object, maps::NAMESPACES)?;
        replace_keys(&mut namespaces, maps::NAMESPACES, &[])?;
        let endpoints =
            Endpoints::new(take(&mut object, maps::ENDPOINTS4)?, take(&mut object, maps::ENDPOINTS6)?)?;
        endpoints.declare(&settings.networks)?;

        Ok(Self {
            endpoints,
            marker: Marker::new(take(&mut object, maps::OWN)?),
            marks,
            flows: Flows::new(take(&mut object, maps::FLOWS)?),
            scopes: take(&mut object, maps::SCOPES)?,
            namespaces,
            heartbeat: take(&mut object, maps::HEARTBEAT)?,
            counters: take(&mut object, maps::COUNTERS)?,
            rates: take(&mut object, maps::RATES)?,
            events: take(&mut object, maps::EVENTS)?,
            dns: take(&mut object, maps::DNS)?,
            programs: Programs::new(
                object,
                settings_map,
                KernelSettings { cgroup: covered.id, ..kernel_settings },
                pins.join(LINKS),
                same_cgroup,
            )?,
            messages,
        })
    }
}

/// The programs with maps of their own, for trying things out: they are pinned where nobody else sees them, and gone with
/// the value.
pub(super) fn trial() -> Result<Ebpf, CaptureError> {
    if OBJECT.is_empty() {
        return Err(CaptureError::NotBuilt);
    }
    let hidden = || -> rustix::io::Result<OwnedFd> {
        let bpffs = fsopen("bpf", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(bpffs.as_fd())?;
        fsmount(bpffs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
    };
    let hidden = hidden().map_err(|error| CaptureError::io("make a BPF file system")(error.into()))?;
    let pins = PathBuf::from(format!("/proc/self/fd/{}", hidden.as_raw_fd()));
    EbpfLoader::new()
        .default_map_pin_directory(&pins)
        .map_pin_path(maps::OWN, pins.join(maps::OWN))
        .verifier_log_level(VerifierLogLevel::STATS)
        .load(OBJECT)
        .map_err(|source| CaptureError::Programs { source })
}

/// Where the maps of this layout are pinned.
pub(super) fn pins(bpffs: &Path) -> PathBuf {
    bpffs.join(format!("v{LAYOUT}"))
}

pub(super) fn make_directory(path: &Path) -> Result<(), CaptureError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(CaptureError::io(format!("create {}", path.display()))(error))
        }
        _ => Ok(()),
    }
}

/// The process id of the agent that the maps name; 0 where there is none.
pub(super) fn pid_of_agent(bpffs: &Path) -> u32 {
    earlier_settings(&pins(bpffs)).ok().flatten().map_or(0, |settings| settings.agent)
}

/// Removes what agents with maps of another layout left, older or newer: links first, and with them their programs.
/// Returns what there was.
pub(super) fn remove_other_layouts(bpffs: &Path) -> Result<Detached, CaptureError> {
    let ours = pins(bpffs);
    remove(bpffs, &|path| path != ours)
}

/// Removes every pin, links first, and the directories.
pub(super) fn remove_pins(bpffs: &Path) -> Result<Detached, CaptureError> {
    let removed = remove(bpffs, &|_| true)?;
    match fs::remove_dir(bpffs) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(CaptureError::io(format!("remove {}", bpffs.display()))(error))
        }
        _ => Ok(removed),
    }
}

/// Removes what is in a directory of pins, as far as it is chosen, without the directory itself.
fn remove(directory: &Path, chosen: &dyn Fn(&Path) -> bool) -> Result<Detached, CaptureError> {
    let failed = || CaptureError::io(format!("remove {}", directory.display()));
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Detached::default()),
        Err(error) => return Err(failed()(error)),
    };
    let entries: Vec<fs::DirEntry> = entries.collect::<Result<_, _>>().map_err(failed())?;
    let (folders, files): (Vec<_>, Vec<_>) =
        entries.iter().map(fs::DirEntry::path).filter(|path| chosen(path)).partition(|path| path.is_dir());
    let mut removed = Detached::default();
    for folder in folders {
        let inside = remove(&folder, &|_| true)?;
        removed.programs.extend(inside.programs);
        removed.maps.extend(inside.maps);
        fs::remove_dir(&folder).map_err(failed())?;
    }
    let names = if directory.file_name().is_some_and(|name| name == LINKS) {
        &mut removed.programs
    } else {
        &mut removed.maps
    };
    for file in files {
        fs::remove_file(&file).map_err(failed())?;
        names.extend(file.file_name().map(|name| name.to_string_lossy().into_owned()));
    }
    removed.programs.sort();
    removed.maps.sort();
    Ok(removed)
}

pub(super) fn release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// Whether a program may say with which error a connect is refused.
pub(super) fn can_set_error() -> bool {
    is_helper_supported(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval).unwrap_or(false)
}

/// What the programs need to know of the kernel's structures; nothing where it cannot be found out.
fn task_layout() -> TaskLayout {
    btf::task_layout().unwrap_or_else(|error| {
        tracing::warn!(%error, "containers cannot be told from the host: raw and packet sockets are not refused");
        TaskLayout::default()
    })
}

/// The settings in the pinned maps, if there are any.
fn earlier_settings(pins: &Path) -> Result<Option<KernelSettings>, CaptureError> {
    let pin = pins.join(maps::SETTINGS);
    if !pin.exists() {
        return Ok(None);
    }
    let failed = CaptureError::map(maps::SETTINGS);
    let mismatch = |found| CaptureError::Layout { pins: pins.to_owned(), found, expected: LAYOUT };
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
    programs: &mut aya::Ebpf,
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

/// Sets the bits of the captured ports, and no others.
fn write_ports(map: &mut Array<MapData, u64>, ports: &[u16]) -> Result<(), CaptureError> {
    for index in 0..1024_u16 {
        let bits = ports.iter().filter(|port| **port >> 6 == index);
        let bits = bits.fold(0_u64, |bits, port| bits | 1 << (port & 63));
        map.set(u32::from(index), bits, 0).map_err(CaptureError::map(maps::PORTS))?;
    }
    Ok(())
}

/// The lengths of the suffixes with a dot before them, each once.
fn suffix_lengths(suffixes: &[String]) -> [u8; SUFFIX_LENGTHS] {
    let lengths: BTreeSet<u8> =
        suffixes.iter().filter_map(|suffix| u8::try_from(suffix.len() + 1).ok()).collect();
    let mut array = [0; SUFFIX_LENGTHS];
    for (to, from) in array.iter_mut().zip(lengths) {
        *to = from;
    }
    array
}

/// The suffix as the kernel programs look for it.
fn suffix_key(suffix: &str) -> Suffix {
    const LOWER_CASE: u8 = 0x20;
    let mut key = [LOWER_CASE; SUFFIX_SIZE];
    let text = std::iter::once(b'.').chain(suffix.bytes());
    for (to, from) in key.iter_mut().rev().zip(text.collect::<Vec<u8>>().into_iter().rev()) {
        *to = from | LOWER_CASE;
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_removed_and_a_second_time_there_are_none() {
        let directory = tempfile::tempdir().unwrap();
        let bpffs = directory.path().join("snowfence");
        fs::create_dir_all(bpffs.join("v2/links")).unwrap();
        for file in ["v2/links/connect4", "v2/links/connect6_next", "v2/SETTINGS", "v2/FLOWS"] {
            fs::write(bpffs.join(file), "").unwrap();
        }
        let removed = remove_pins(&bpffs).unwrap();
        assert_eq!(removed.programs, ["connect4", "connect6_next"]);
        assert_eq!(removed.maps, ["FLOWS", "SETTINGS"]);
        assert!(!bpffs.exists());
        assert_eq!(remove_pins(&bpffs).unwrap(), Detached::default());
    }

    #[test]
    fn other_layouts_are_told_from_this_one() {
        let directory = tempfile::tempdir().unwrap();
        let bpffs = directory.path();
        for folder in ["v2/links", "links", "v9/links"] {
            fs::create_dir_all(bpffs.join(folder)).unwrap();
        }
        for file in ["v2/SETTINGS", "v2/links/connect4", "SETTINGS", "links/connect6", "v9/links/other"] {
            fs::write(bpffs.join(file), "").unwrap();
        }
        let removed = remove_other_layouts(bpffs).unwrap();
        assert_eq!(
            (removed.programs, removed.maps),
            (vec!["connect6".into(), "other".into()], vec!["SETTINGS".into()])
        );
        assert!(bpffs.join("v2/SETTINGS").exists() && bpffs.join("v2/links/connect4").exists());
        assert!(!bpffs.join("links").exists() && !bpffs.join("v9").exists());
    }

    #[test]
    fn suffixes_are_compared_by_their_ends() {
        let key = suffix_key("Snowflake.app");
        assert!(key.ends_with(b" .snowflake.app") && key.starts_with(&[b' '; 50]));
        let lengths = suffix_lengths(&["a.bc".into(), "snowflake.app".into(), "x.yz".into()]);
        assert_eq!(lengths, [5, 14, 0, 0, 0, 0, 0, 0]);
    }
}
