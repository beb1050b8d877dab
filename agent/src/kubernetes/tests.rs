//! Against a small server that answers lists and watches as an API server does.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use globset::{Glob, GlobSet};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch as channel};

use super::*;
use crate::config::{ApiServer, Kubernetes};

fn selector(namespaces: &[&str], labels: &[(&str, &str)]) -> PodSelector {
    let globs = namespaces.iter().fold(GlobSet::builder(), |mut set, glob| {
        set.add(Glob::new(glob).unwrap());
        set
    });
    PodSelector {
        namespaces: (!namespaces.is_empty()).then(|| globs.build().unwrap()),
        labels: labels.iter().map(|(label, value)| ((*label).into(), (*value).into())).collect(),
    }
}

#[test]
fn a_pod_is_found_by_its_cgroup_whoever_made_that() {
    let uid = "0b7f9c7e-3f2d-4b1c-9d37-2a6a1f0c9a11";
    let pod = Pod { namespace: "agents".into(), name: "a".into(), labels: BTreeMap::new() };
    let pods = Pods { by_uid: HashMap::from([(uid.into(), pod)]) };
    for name in [
        format!("pod{uid}"),
        format!("kubepods-burstable-pod{}.slice", uid.replace('-', "_")),
        format!("kubepods-pod{}.slice", uid.replace('-', "_")),
    ] {
        assert!(pods.of_cgroup(&name).is_some(), "{name}");
    }
    for name in ["kubepods.slice", "pod", "cri-containerd-1234.scope", "podman-1.scope", ""] {
        assert!(pods.of_cgroup(name).is_none(), "{name}");
    }
}

#[test]
fn a_selector_wants_the_namespace_and_every_label() {
    let labels = BTreeMap::from([("trust".into(), "none".into()), ("app".into(), "bot".into())]);
    let pod = Pod { namespace: "agents-eu".into(), name: "a".into(), labels };
    for (namespaces, labels, expected) in [
        (&[][..], &[][..], true),
        (&["agents-*"], &[], true),
        (&["other"], &[], false),
        (&["agents-*"], &[("trust", "none")], true),
        (&[], &[("trust", "none"), ("app", "web")], false),
    ] {
        assert_eq!(pod.matches(&selector(namespaces, labels)), expected, "{namespaces:?} {labels:?}");
    }
    assert!(!pod.matches(&PodSelector { namespaces: Some(GlobSet::empty()), labels: BTreeMap::new() }));
}

fn object(uid: &str, labels: &Value, version: u32) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": {
            "name": format!("pod-{uid}"), "namespace": "agents", "uid": uid, "labels": labels,
            "resourceVersion": version.to_string(),
        },
    })
}

/// Heads of the requests that came, and what a watch is to say next; an empty text ends it.
struct ApiServerDouble {
    heads: Arc<Mutex<Vec<String>>>,
    says: mpsc::UnboundedSender<String>,
    pods: Arc<Mutex<Vec<Value>>>,
    url: hyper::Uri,
}

async fn serve() -> ApiServerDouble {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let (says, said) = mpsc::unbounded_channel();
    let said = Arc::new(tokio::sync::Mutex::new(said));
    let (heads, pods) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<Mutex<Vec<Value>>>::default());
    let (seen, listed) = (Arc::clone(&heads), Arc::clone(&pods));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream, Arc::clone(&seen), Arc::clone(&listed), Arc::clone(&said)));
        }
    });
    ApiServerDouble { heads, says, pods, url }
}

async fn answer(
    stream: TcpStream,
    heads: Arc<Mutex<Vec<String>>>,
    pods: Arc<Mutex<Vec<Value>>>,
    said: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<String>>>,
) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if stream.read_line(&mut head).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let is_watch = head.lines().next().unwrap_or_default().contains("watch=true");
        heads.lock().unwrap().push(head);
        if !is_watch {
            let items = pods.lock().unwrap().clone();
            let body = json!({
                "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
                "metadata": { "resourceVersion": "10" }, "items": items,
            })
            .to_string();
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            stream.write_all((head + &body).as_bytes()).await.unwrap();
            continue;
        }
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut said = said.lock().await;
        while let Some(text) = said.recv().await {
            let chunk = if text.is_empty() {
                "0\r\n\r\n".to_owned()
            } else {
                format!("{:x}\r\n{text}\n\r\n", text.len() + 1)
            };
            stream.write_all(chunk.as_bytes()).await.unwrap();
            if text.is_empty() {
                break;
            }
        }
    }
}

fn event(kind: &str, object: &Value) -> String {
    json!({ "type": kind, "object": object }).to_string()
}

async fn until(pods: &mut channel::Receiver<Arc<Pods>>, holds: impl Fn(&Pods) -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(20), pods.wait_for(|pods| holds(pods))).await;
    waited.expect("in time").expect("the watcher runs");
}

fn trust(pods: &Pods, uid: &str) -> Option<String> {
    pods.by_uid.get(uid)?.labels.get("trust").cloned()
}

#[tokio::test]
async fn pods_that_come_change_and_go_are_known() {
    let server = serve().await;
    *server.pods.lock().unwrap() = vec![object("one", &json!({ "trust": "none" }), 9)];
    let folder = tempfile::tempdir().unwrap();
    let token_file = folder.path().join("token");
    std::fs::write(&token_file, "secret-token").unwrap();
    let api_server = ApiServer { url: server.url, token_file: Some(token_file), ca_bundle: None };
    let settings = Kubernetes { node: "worker-17".into(), api_server: Some(api_server) };
    let (sender, mut pods) = channel::channel(Arc::<Pods>::default());
    let client = watch::client(&settings).unwrap();
    let watching = tokio::spawn(watch::run(client, settings.node, sender));
    until(&mut pods, |pods| trust(pods, "one").as_deref() == Some("none")).await;

    server.says.send(event("ADDED", &object("two", &json!({ "trust": "some" }), 11))).unwrap();
    until(&mut pods, |pods| pods.by_uid.len() == 2).await;
    server.says.send(event("MODIFIED", &object("one", &json!({ "trust": "full" }), 12))).unwrap();
    until(&mut pods, |pods| trust(pods, "one").as_deref() == Some("full")).await;
    server.says.send(event("DELETED", &object("one", &json!({}), 13))).unwrap();
    until(&mut pods, |pods| pods.by_uid.len() == 1).await;

    // The server has forgotten where the watch was: everything is asked for anew.
    *server.pods.lock().unwrap() = vec![object("three", &json!({}), 20)];
    let gone = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "message": "too old", "code": 410 });
    server.says.send(event("ERROR", &gone)).unwrap();
    server.says.send(String::new()).unwrap();
    until(&mut pods, |pods| pods.by_uid.contains_key("three") && pods.by_uid.len() == 1).await;
    watching.abort();

    let heads = server.heads.lock().unwrap();
    for head in heads.iter() {
        let head = head.to_ascii_lowercase();
        assert!(head.contains("fieldselector=spec.nodename%3dworker-17"), "{head}");
        assert!(head.contains("partialobjectmetadata"), "only metadata is asked for: {head}");
        assert!(head.contains("authorization: bearer secret-token"), "{head}");
    }
}
