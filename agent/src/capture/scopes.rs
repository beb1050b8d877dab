//! Scopes: what holds for which workload. The rules of the configuration name workloads by paths, units and pods; the
//! kernel programs know cgroups by their ids. Here one becomes the other, again and again, as cgroups come and go.

use std::{
    collections::HashMap,
    fs,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use agent_common::{Scope as KernelScope, maps, mode, raw_sockets};
use aya::maps::{MapData, MapError};
use rustix::fs::inotify;

use super::{
    CaptureError,
    cgroups::{self, Cgroups},
};
use crate::{
    config::{Mode, RawSockets, Scope},
    kubernetes::Pods,
};

pub(super) struct Scopes {
    rules: Vec<Scope>,
    /// What holds where no rule says otherwise.
    default: KernelScope,
    cgroups: Arc<Cgroups>,
    /// Directory of the covered cgroup.
    covered: PathBuf,
    map: aya::maps::HashMap<MapData, u64, KernelScope>,
    /// What the map says.
    current: HashMap<u64, KernelScope>,
    /// Tells of cgroups that are made.
    watch: Option<OwnedFd>,
    /// Rules of which it was said that they match nothing.
    told: Vec<bool>,
}

/// What holds, as the kernel programs read it.
pub(super) fn value(mode: Mode, raw_sockets: RawSockets) -> KernelScope {
    KernelScope {
        mode: match mode {
            Mode::Endpoints => mode::ENDPOINTS,
            Mode::All => mode::ALL,
            Mode::Off => mode::OFF,
        },
        raw_sockets: match raw_sockets {
            RawSockets::Host => raw_sockets::HOST,
            RawSockets::Allow => raw_sockets::ALLOW,
            RawSockets::Refuse => raw_sockets::REFUSE,
        },
        reserved: [0; 2],
    }
}

impl Scopes {
    /// With what an earlier agent left in the map, which the first reconciliation replaces.
    pub(super) fn new(
        rules: Vec<Scope>,
        default: KernelScope,
        cgroups: Arc<Cgroups>,
        covered: PathBuf,
        map: aya::maps::HashMap<MapData, u64, KernelScope>,
    ) -> Self {
        let current = map.iter().filter_map(Result::ok).collect();
        let told = vec![false; rules.len()];
        Self { rules, default, cgroups, covered, map, current, watch: None, told }
    }

    /// A handle that becomes readable when a cgroup is made. None where no rule needs it.
    pub(super) fn watch(&mut self) -> Result<Option<OwnedFd>, CaptureError> {
        if self.rules.is_empty() {
            return Ok(None);
        }
        let failed = CaptureError::io("watch the cgroups");
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
            .map_err(|error| failed(error.into()))?;
        let shared = watch.try_clone().map_err(CaptureError::io("watch the cgroups"))?;
        self.watch = Some(watch);
        Ok(Some(shared))
    }

    /// Brings the map up to date with the cgroups and pods that there are. Says whether anything changed. Reads the tree.
    pub(super) fn reconcile(&mut self, pods: &Pods) -> Result<bool, CaptureError> {
        if self.rules.is_empty() && self.current.is_empty() {
            return Ok(false);
        }
        let mut matched = vec![false; self.rules.len()];
        let mut wanted = HashMap::new();
        self.visit(&self.covered.clone(), self.default, pods, &mut wanted, &mut matched);
        self.tell(&matched);
        let changed = wanted != self.current;
        for (id, scope) in &wanted {
            if self.current.get(id) != Some(scope) {
                self.map.insert(id, scope, 0).map_err(CaptureError::map(maps::SCOPES))?;
            }
        }
        for id in self.current.keys().filter(|id| !wanted.contains_key(*id)) {
            match self.map.remove(id) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(CaptureError::map(maps::SCOPES)(error)),
            }
        }
        self.current = wanted;
        Ok(changed)
    }

    /// Cgroups for which something else holds than for the one above.
    pub(super) fn count(&self) -> usize {
        self.current.len()
    }

    /// What holds for a cgroup, by its path from the root of the hierarchy.
    pub(super) fn of(&self, path: &str, pods: &Pods) -> KernelScope {
        let ancestors: Vec<&Path> = Path::new(path).ancestors().collect();
        ancestors
            .into_iter()
            .find_map(|path| self.matching(path, pods).map(|(_, scope)| scope))
            .unwrap_or(self.default)
    }

    fn visit(
        &self,
        directory: &Path,
        inherited: KernelScope,
        pods: &Pods,
        wanted: &mut HashMap<u64, KernelScope>,
        matched: &mut [bool],
    ) {
        // Levels are few: the kernel programs themselves look at no more than sixteen.
        let mut waiting = vec![(directory.to_owned(), inherited)];
        while let Some((directory, inherited)) = waiting.pop() {
            if let Some(watch) = &self.watch {
                let flags = inotify::WatchFlags::CREATE | inotify::WatchFlags::ONLYDIR;
                let _ = inotify::add_watch(watch, &directory, flags);
            }
            let path = self.cgroups.path_of(&directory);
            let mut effective = inherited;
            if let Some((rule, scope)) = self.matching(&path, pods) {
                if let Some(matched) = matched.get_mut(rule) {
                    *matched = true;
                }
                if scope != inherited
                    && let Ok(metadata) = fs::metadata(&directory)
                {
                    wanted.insert(metadata.ino(), scope);
                }
                effective = scope;
            }
            waiting.extend(cgroups::children(&directory).map(|(child, _)| (child, effective)));
        }
    }

    fn matching(&self, path: &Path, pods: &Pods) -> Option<(usize, KernelScope)> {
        let name = path.file_name().unwrap_or_default();
        let mut pod = None;
        self.rules.iter().enumerate().find_map(|(index, rule)| {
            let is_match = rule.cgroups.is_match(path)
                || rule.units.is_match(name)
                || rule.pods.as_ref().is_some_and(|selector| {
                    pod.get_or_insert_with(|| pods.of_cgroup(&name.to_string_lossy()))
                        .is_some_and(|pod| pod.matches(selector))
                });
            is_match.then(|| (index, value(rule.mode, rule.raw_sockets)))
        })
    }

    /// A rule that matches nothing is a mistake more often than not.
    fn tell(&mut self, matched: &[bool]) {
        for ((rule, matched), told) in self.rules.iter().zip(matched).zip(&mut self.told) {
            if !matched && !*told {
                tracing::warn!(scope = rule.name, "this scope matches no cgroup at the moment");
            }
            *told = !matched;
        }
    }
}
