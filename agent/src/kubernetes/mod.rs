//! What Kubernetes knows of the pods on this node.

#![forbid(unsafe_code)]

pub mod watch;

use std::collections::{BTreeMap, HashMap};

use crate::config::PodSelector;

/// The pods of this node, by their uids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pods {
    by_uid: HashMap<String, Pod>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub labels: BTreeMap<String, String>,
}

impl Pods {
    /// The pod whose cgroup has this name: `pod<uid>`, or `kubepods-burstable-pod<uid>.slice` where systemd made it, in
    /// which the dashes of the uid are underscores.
    pub fn of_cgroup(&self, name: &str) -> Option<&Pod> {
        let (_, uid) = name.strip_suffix(".slice").unwrap_or(name).rsplit_once("pod")?;
        self.by_uid.get(uid).or_else(|| self.by_uid.get(&uid.replace('_', "-")))
    }
}

impl Pod {
    pub fn matches(&self, selector: &PodSelector) -> bool {
        selector.namespaces.as_ref().is_none_or(|namespaces| namespaces.is_match(&self.namespace))
            && selector.labels.iter().all(|(label, value)| self.labels.get(label) == Some(value))
    }
}

#[cfg(test)]
mod tests;
