//! Serving HTTP and HTTPS.
//!
//! What every serving process of Tessera needs and nothing that knows Kubernetes: a listener whose errors name
//! the port, TLS whose certificate is swapped while serving ([`tls`]), an own certificate authority that renews
//! itself without a gap ([`authority`]), shutdown that lets requests in flight finish ([`server`]), sockets that
//! a parent keeps while the service is started again ([`kept`]) and health that tells the truth ([`health`]).

pub mod authority;
pub mod health;
pub mod kept;
pub mod server;
pub mod tls;

pub use authority::{Authority, AuthorityError};
pub use health::Health;
pub use kept::{Inherited, Kept};
pub use server::{BodyError, Limits, ListenError, Listener, Peer, read_body, serve};
pub use tls::{Certificate, TlsError};
