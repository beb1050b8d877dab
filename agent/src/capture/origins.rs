//! Whose an attempt was. A socket says which cgroup it belongs to; a packet that has left its socket's namespace says only
//! by which device it came, and that device leads to a pod.

use std::{
    collections::HashMap,
    os::fd::AsFd as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use agent_common::{Event, RateKey};

use super::{cgroups::Cgroups, devices, namespace::Namespace, workload::Workload};

pub(super) struct Origins {
    cgroups: Arc<Cgroups>,
    /// The covered namespaces besides the host's own, by their inode numbers.
    residents: Mutex<HashMap<u64, Resident>>,
}

struct Resident {
    namespace: Arc<Namespace>,
    /// The cgroup that all of its processes are in, or below which they are.
    cgroup: String,
}

impl Origins {
    pub(super) fn new(cgroups: Arc<Cgroups>) -> Self {
        Self { cgroups, residents: Mutex::default() }
    }

    /// Who caused an event; none where that cannot be told. Reads files.
    pub(super) fn of(&self, event: &Event) -> Option<Workload> {
        if event.cgroup_id == 0 {
            let cgroup = self.cgroup_of(RateKey::owner(0, event.device))?;
            return Some(Workload { cgroup, ..Workload::default() });
        }
        Workload::find(event.cgroup_id, event.pid, event.uid, &event.comm, &self.cgroups)
    }

    /// The path of a cgroup, by what the kernel programs count under.
    pub(super) fn cgroup_of(&self, owner: u64) -> Option<String> {
        if owner & RateKey::DEVICE == 0 {
            return self.cgroups.path(owner, 0);
        }
        self.behind(u32::try_from(owner & !RateKey::DEVICE).ok()?)
    }

    /// The cgroup in the namespace that a device of the host leads to.
    fn behind(&self, device: u32) -> Option<String> {
        if device == 0 {
            return None;
        }
        let wanted = devices::peer_namespace(device).ok()??;
        let residents: Vec<(Arc<Namespace>, String)> = {
            let residents = self.residents();
            residents
                .values()
                .map(|resident| (Arc::clone(&resident.namespace), resident.cgroup.clone()))
                .collect()
        };
        let is_there = |(namespace, _): &(Arc<Namespace>, String)| {
            devices::id_of_namespace(namespace.file.as_fd()).is_ok_and(|id| id == Some(wanted))
        };
        residents.into_iter().find(is_there).map(|(_, cgroup)| cgroup).filter(|cgroup| !cgroup.is_empty())
    }

    /// A namespace is covered from now on, or other processes are in it.
    pub(super) fn settle(&self, inode: u64, namespace: &Arc<Namespace>, cgroup: Option<&str>) {
        let mut residents = self.residents();
        let resident = residents
            .entry(inode)
            .or_insert_with(|| Resident { namespace: Arc::clone(namespace), cgroup: String::new() });
        if let Some(cgroup) = cgroup
            && resident.cgroup != cgroup
        {
            cgroup.clone_into(&mut resident.cgroup);
        }
    }

    /// A namespace is left.
    pub(super) fn leave(&self, inode: u64) {
        self.residents().remove(&inode);
    }

    fn residents(&self) -> MutexGuard<'_, HashMap<u64, Resident>> {
        // A panic elsewhere leaves at worst an attempt without a name.
        self.residents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
