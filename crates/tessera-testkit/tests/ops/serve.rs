//! The endpoints, without sockets, before an API server that is a map of objects.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tessera_engine::{Engine, admission};
use tessera_extender::{App, Cluster, FilterMode, Guard, Parts, Routes, Settings, WriteAt, router};
use tessera_http::Health;
use tessera_kube::Client;
use tessera_kube::books::{self, Books, Input, SteadyClock};
use tessera_kube::events::Recorder;
use tessera_kube::reach::Reach;
use tessera_kube::watch::Change;
use tessera_testkit::build;
use tessera_testkit::conformance::wire_ops::{holder, member};
use tessera_testkit::conformance::{Case, Op};
use tessera_wire::keys;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceExt};

use super::{engine, text};

pub(crate) const OPS: &[(&str, Op)] = &[("http", http), ("bind", bind)];

/// Pods and nodes by path, as far as binding needs them.
#[derive(Clone, Default)]
pub(crate) struct Server(Arc<Mutex<BTreeMap<String, Value>>>);

impl Server {
    pub(crate) fn put(&self, path: &str, mut object: Value) {
        object["metadata"]["resourceVersion"] = json!("1");
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(path.to_owned(), object);
    }

    pub(crate) fn object(&self, path: &str) -> Value {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(path)
            .cloned()
            .unwrap_or_default()
    }

    fn answer(&self, method: &Method, path: &str, body: &Value) -> (StatusCode, Value) {
        let failure = |code: StatusCode, reason: &str| {
            let text = format!("{path}: {reason}");
            (
                code,
                json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": text, "reason": reason, "code": code.as_u16()}),
            )
        };
        let mut objects = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pod) = path.strip_suffix("/binding") {
            let Some(object) = objects.get_mut(pod) else {
                return failure(StatusCode::NOT_FOUND, "NotFound");
            };
            object["spec"]["nodeName"] = body["target"]["name"].clone();
            return (
                StatusCode::CREATED,
                json!({"kind": "Status", "apiVersion": "v1", "status": "Success", "code": 201}),
            );
        }
        let Some(object) = objects.get_mut(path) else {
            return failure(StatusCode::NOT_FOUND, "NotFound");
        };
        if method == Method::PATCH {
            for fixed in ["uid", "resourceVersion"] {
                let (old, new) = (&object["metadata"][fixed], &body["metadata"][fixed]);
                if !new.is_null() && old != new {
                    return failure(StatusCode::CONFLICT, "Conflict");
                }
            }
            json_patch::merge(object, body);
            object["metadata"]["resourceVersion"] = json!(format!(
                "{}1",
                object["metadata"]["resourceVersion"].as_str().unwrap_or_default()
            ));
        }
        (StatusCode::OK, object.clone())
    }
}

impl<B> Service<Request<B>> for Server
where
    B: http_body_util::BodyExt<Data = Bytes> + Send + 'static,
    B::Error: std::fmt::Debug,
{
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let server = self.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let bytes = body
                .collect()
                .await
                .map(http_body_util::Collected::to_bytes)
                .unwrap_or_default();
            let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
            let (status, answer) = server.answer(&parts.method, parts.uri.path(), &body);
            let mut response = Response::new(Full::new(Bytes::from(answer.to_string())));
            *response.status_mut() = status;
            Ok(response)
        })
    }
}

/// The books with these nodes, read to the end if `synced`.
async fn books(engine: &Engine, nodes: &[Value], synced: bool, stop: &CancellationToken) -> Result<Books, String> {
    let (books, inputs, work) = books::open(Arc::clone(engine.vendors()), SteadyClock::default(), stop.clone());
    tokio::spawn(work);
    if !synced {
        // The channel stays open as long as the process, as with a server that does not answer.
        std::mem::forget(inputs);
        return Ok(books);
    }
    let mut events = vec![Input::Node(Change::Restarted)];
    for node in nodes {
        let object = serde_json::from_value(node.clone()).map_err(text)?;
        events.push(Input::Node(Change::Listed(Box::new(object))));
    }
    events.extend([
        Input::Node(Change::Complete),
        Input::Pod(Change::Complete),
        Input::Quota(Change::Complete),
    ]);
    for event in events {
        inputs.send(event).await.map_err(text)?;
    }
    books.wait_synced().await.map_err(text)?;
    std::mem::forget(inputs);
    Ok(books)
}

pub(crate) async fn app(
    case: &Case,
    server: Server,
    nodes: &[Value],
    synced: bool,
    stop: &CancellationToken,
) -> Result<Arc<App>, String> {
    let engine = engine(case)?;
    let client = Client::new(server, "default");
    let (_alive, reach) = watch::channel(Reach {
        since: Instant::now(),
        state: Ok(()),
    });
    let parts = Parts {
        books: books(&engine, nodes, synced, stop).await?,
        engine,
        cluster: Cluster::new(client, Duration::from_secs(300)),
        recorder: Recorder::channel(16).0,
        health: Health::default(),
        reach,
        sighting: None,
    };
    let settings = Settings {
        filter_mode: FilterMode::One,
        write_at: WriteAt::Bind,
        assume_time: Duration::from_secs(90),
        sync_wait: Duration::from_millis(50),
        lock_retry: Duration::ZERO,
        admit: admission::Settings::default(),
    };
    Ok(App::new(parts, settings))
}

pub(crate) fn run<F: Future<Output = Result<Value, String>>>(
    work: impl FnOnce(CancellationToken) -> F,
) -> Result<Value, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(text)?;
    let stop = CancellationToken::new();
    let outcome = runtime.block_on(work(stop.clone()));
    stop.cancel();
    outcome
}

/// One request through the router: status and body.
pub(crate) async fn ask(app: &Arc<App>, request: Request<Body>) -> Result<(u16, Value), String> {
    let response = router(app, Routes::All(Guard::Near))
        .oneshot(request)
        .await
        .map_err(text)?;
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await.map_err(text)?.to_bytes();
    Ok((status, serde_json::from_slice(&bytes).unwrap_or_default()))
}

fn http(case: &Case) -> Result<Value, String> {
    let input = &case.input;
    let path: String = member(input, "path")?;
    let padding = member::<Option<usize>>(input, "body_pad_bytes")?.unwrap_or(0);
    let body = member::<String>(input, "body")?.replace("@PAD@", &"x".repeat(padding));
    let mut request = Request::builder()
        .method(member::<String>(input, "method")?.as_str())
        .uri(&path);
    if let Some(kind) = member::<Option<String>>(input, "content_type")? {
        request = request.header("content-type", kind);
    }
    let request = request.body(Body::from(body)).map_err(text)?;
    // A caller that gives up does so while the first picture of the cluster is still awaited.
    let gone = member::<Option<bool>>(input, "client_gone")?.unwrap_or(false);
    run(|stop| async move {
        let app = app(case, Server::default(), &[], !gone, &stop).await?;
        let (status, answer) = ask(&app, request).await?;
        let mut outcome = json!({"status": status});
        if path == "/webhook" && status == 200 {
            let response = &answer["response"];
            outcome["apiVersion"] = answer["apiVersion"].clone();
            outcome["allowed"] = response["allowed"].clone();
            outcome["uid"] = response["uid"].clone();
            outcome["patch_type"] = response["patchType"].clone();
            outcome["code"] = response["status"]["code"].clone();
        } else if let Some(members) = answer.as_object() {
            outcome["keys"] = json!(members.len());
            outcome["error_set"] = json!(
                members
                    .get("Error")
                    .and_then(Value::as_str)
                    .is_some_and(|error| !error.is_empty())
            );
        }
        Ok(outcome)
    })
}

fn bind(case: &Case) -> Result<Value, String> {
    let input = &case.input;
    let name: String = member(input, "node")?;
    let mut node = build::node(&name).cards(&[build::card("GPU-a").card()]);
    if let Some(lock) = member::<Option<String>>(input, "node_lock")? {
        node = node.annotation(keys::NODE_LOCK, &lock);
    }
    let node = node.json();
    let server = Server::default();
    let node_path = format!("/api/v1/nodes/{name}");
    server.put(&node_path, node.clone());
    let pod_path = |pod: &Value| -> Result<String, String> {
        let (namespace, name): (String, String) = (
            member(&pod["metadata"], "namespace")?,
            member(&pod["metadata"], "name")?,
        );
        Ok(format!("/api/v1/namespaces/{namespace}/pods/{name}"))
    };
    let pod: Value = member(input, "pod")?;
    for other in member::<Option<Vec<Value>>>(input, "existing_pods")?.unwrap_or_default() {
        server.put(&pod_path(&other)?, other);
    }
    server.put(&pod_path(&pod)?, pod.clone());
    let args = json!({
        "PodName": pod["metadata"]["name"], "PodNamespace": pod["metadata"]["namespace"],
        "PodUID": pod["metadata"]["uid"], "Node": name,
    });
    let request = Request::post("/bind")
        .body(Body::from(args.to_string()))
        .map_err(text)?;
    run(|stop| async move {
        let app = app(case, server.clone(), &[node], true, &stop).await?;
        let (_, answer) = ask(&app, request).await?;
        let error = answer["Error"].as_str().unwrap_or("no answer");
        // What failed comes before the reference's words.
        let expected = case.expected["error"].as_str().unwrap_or_default();
        let error = if error.ends_with(expected) && !expected.is_empty() {
            expected
        } else {
            error
        };
        let annotations = server.object(&pod_path(&pod)?)["metadata"]["annotations"].clone();
        let lock = server.object(&node_path)["metadata"]["annotations"][keys::NODE_LOCK].clone();
        Ok(json!({
            "error": error,
            "bind_phase": annotations[keys::BIND_PHASE].as_str().unwrap_or_default(),
            "bind_time_set": annotations[keys::BIND_TIME].is_string(),
            "lock_holder": lock.as_str().map(|lock| holder(Some(lock))).unwrap_or_default(),
        }))
    })
}
