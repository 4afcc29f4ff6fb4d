//! A client without a server: each request is answered by a function and written down. For tests of what is
//! sent, by this crate and by those who use it.

use std::sync::{Arc, Mutex, PoisonError};

use http::{Request, Response, StatusCode};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

/// A request as it was sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Sent {
    /// `GET`, `PATCH`, ...
    pub method: String,
    /// Path without the query.
    pub path: String,
    /// Body; `Null` if there is none.
    pub body: Value,
}

/// What a request is answered with.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// Status 200 and an object.
    Object(Value),
    /// A Status object with this code and reason.
    Refuse(u16, &'static str),
    /// The connection breaks.
    Lost,
}

/// All requests so far. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Log(Arc<Mutex<Vec<Sent>>>);

impl Log {
    /// What was sent, in order.
    #[must_use]
    pub fn sent(&self) -> Vec<Sent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What was sent that is no reading.
    #[must_use]
    pub fn writes(&self) -> Vec<Sent> {
        self.sent().into_iter().filter(|sent| sent.method != "GET").collect()
    }
}

/// A client whose requests `answer` answers.
#[must_use]
pub fn client(answer: impl Fn(&Sent) -> Reply + Send + Sync + 'static) -> (Client, Log) {
    let log = Log::default();
    let (writing, answer) = (log.clone(), Arc::new(answer));
    let service = tower::service_fn(move |request: Request<Body>| {
        let (log, answer) = (writing.clone(), Arc::clone(&answer));
        async move {
            let (head, body) = request.into_parts();
            let bytes = body.collect_bytes().await.map_err(|error| error.to_string())?;
            let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
            let sent = Sent {
                method: head.method.to_string(),
                path: head.uri.path().to_owned(),
                body,
            };
            let reply = answer(&sent);
            log.0.lock().unwrap_or_else(PoisonError::into_inner).push(sent);
            let (status, object) = match reply {
                Reply::Object(object) => (StatusCode::OK, object),
                Reply::Refuse(code, reason) => {
                    let status = StatusCode::from_u16(code).map_err(|error| error.to_string())?;
                    let message = format!("{reason} by the script");
                    (
                        status,
                        json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message}),
                    )
                }
                Reply::Lost => return Err("the connection broke".to_owned()),
            };
            let mut response = Response::new(Body::from(object.to_string().into_bytes()));
            *response.status_mut() = status;
            Ok::<_, String>(response)
        }
    });
    (Client::new(service, "default"), log)
}
