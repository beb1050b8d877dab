//! Watches the pods of this node. Only their metadata is asked for.

use std::sync::Arc;

use futures_util::{StreamExt as _, pin_mut};
use k8s_openapi::api::core::v1::Pod as ApiPod;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Config};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::sync::watch;

use super::{Pod, Pods};
use crate::config::{ApiServer, Kubernetes};

#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    #[error(
        "the cluster does not tell its pods where the API server is: {0}. Set kubernetes.api_server, or run the agent as a pod with a service account"
    )]
    Cluster(#[from] kube::config::InClusterError),
    #[error("{}: {source}", path.display())]
    Read { path: std::path::PathBuf, source: std::io::Error },
    #[error("{}: holds no certificate in PEM", path.display())]
    Certificate { path: std::path::PathBuf },
    #[error("the API server cannot be spoken to: {0}")]
    Client(#[from] Box<kube::Error>),
}

/// Prepares to ask. Nothing is sent yet.
pub fn client(settings: &Kubernetes) -> Result<Client, KubernetesError> {
    let config = match &settings.api_server {
        Some(server) => explicit(server)?,
        None => Config::incluster()?,
    };
    Client::try_from(config).map_err(|error| KubernetesError::Client(Box::new(error)))
}

/// Keeps `pods` up to date until nobody wants to know any more.
pub async fn run(client: Client, node: String, pods: watch::Sender<Arc<Pods>>) {
    let api: Api<PartialObjectMeta<ApiPod>> = Api::all(client);
    let ours = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
    let events = watcher(api, ours).default_backoff();
    pin_mut!(events);
    let mut known = Known::default();
    let mut failing = false;
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if failing {
                    tracing::info!("the API server answers again");
                }
                failing = false;
                if known.take(event) {
                    pods.send_replace(Arc::new(known.pods.clone()));
                }
            }
            Err(error) => {
                // Said once and not at each retry. What is known stays in force.
                if !failing {
                    tracing::warn!(%error, "the pods of this node are not known: scopes by pods are as they were");
                }
                failing = true;
            }
        }
        if pods.is_closed() {
            return;
        }
    }
}

/// What has been heard.
#[derive(Default)]
struct Known {
    pods: Pods,
    /// While a new list is coming in, the old one stays in force.
    coming: Option<Pods>,
}

impl Known {
    /// Says whether the pods have changed.
    fn take(&mut self, event: Event<PartialObjectMeta<ApiPod>>) -> bool {
        match event {
            Event::Init => {
                self.coming = Some(Pods::default());
                false
            }
            Event::InitApply(object) => {
                let coming = self.coming.get_or_insert_default();
                coming.by_uid.extend(pod(&object));
                false
            }
            Event::InitDone => {
                let coming = self.coming.take().unwrap_or_default();
                let changed = coming != self.pods;
                self.pods = coming;
                changed
            }
            Event::Apply(object) => {
                let Some((uid, pod)) = pod(&object) else { return false };
                self.pods.by_uid.insert(uid, pod.clone()) != Some(pod)
            }
            Event::Delete(object) => {
                let uid = object.metadata.uid.unwrap_or_default();
                self.pods.by_uid.remove(&uid).is_some()
            }
        }
    }
}

fn pod(object: &PartialObjectMeta<ApiPod>) -> Option<(String, Pod)> {
    let metadata = &object.metadata;
    let pod = Pod {
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: metadata.name.clone().unwrap_or_default(),
        labels: metadata.labels.clone().unwrap_or_default(),
    };
    Some((metadata.uid.clone()?, pod))
}

fn explicit(server: &ApiServer) -> Result<Config, KubernetesError> {
    let mut config = Config::new(server.url.clone());
    config.auth_info.token_file = server.token_file.as_ref().map(|path| path.to_string_lossy().into_owned());
    if let Some(path) = &server.ca_bundle {
        let pem =
            std::fs::read(path).map_err(|source| KubernetesError::Read { path: path.clone(), source })?;
        let roots: Vec<Vec<u8>> = CertificateDer::pem_slice_iter(&pem)
            .filter_map(Result::ok)
            .map(|certificate| certificate.to_vec())
            .collect();
        if roots.is_empty() {
            return Err(KubernetesError::Certificate { path: path.clone() });
        }
        config.root_cert = Some(roots);
    }
    Ok(config)
}
