//! TLS with a certificate that can be swapped while serving.
//!
//! A handshake takes the certificate of that moment, so a renewed one is in use at the next connection and
//! nothing restarts. The crypto provider is always named here: a process-wide default would panic at run time
//! as soon as a second provider were linked.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use tokio_util::sync::CancellationToken;

/// How often certificate files are looked at. A mounted Secret changes by a symlink flip of its folder, which
/// file notification misses on some file systems; a look costs two small reads.
const RELOAD_INTERVAL: Duration = Duration::from_secs(5);

/// A certificate or key that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file cannot be read.
    #[error("cannot read the {what} file `{path}`: {source}", path = path.display())]
    Read {
        /// `certificate` or `private key`.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The text is no PEM of that kind.
    #[error("the {what} is not usable PEM: {reason}")]
    Pem {
        /// `certificate` or `private key`.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// The certificate and the key do not belong together, or the key is of an unknown kind.
    #[error("the certificate and the private key do not work together: {0}")]
    Pair(#[source] rustls::Error),
    /// The client CA cannot be used.
    #[error("the client CA is not usable: {0}")]
    ClientCa(String),
    /// The TLS library refuses the configuration.
    #[error("TLS cannot be configured: {0}")]
    Config(#[source] rustls::Error),
}

/// The certificate in use; empty until the first one is set. Cheap to clone, all clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Certificate {
    current: Arc<ArcSwapOption<CertifiedKey>>,
}

impl Certificate {
    /// Takes a new certificate chain and key into use, both PEM.
    ///
    /// # Errors
    /// The texts are not PEM, or do not belong together. The old certificate stays in use.
    pub fn set_pem(&self, certificate: &[u8], key: &[u8]) -> Result<(), TlsError> {
        self.current.store(Some(Arc::new(certified_key(certificate, key)?)));
        Ok(())
    }

    /// Whether there is one.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.current.load().is_some()
    }

    /// Reads the files once, and then again whenever they change, until `stop`.
    ///
    /// Unusable new files are logged and the old certificate stays in use. The first reading is done before
    /// this returns; the rest is the returned future's work.
    ///
    /// # Errors
    /// The first reading fails.
    pub fn follow_files(
        &self,
        certificate: &Path,
        key: &Path,
        stop: CancellationToken,
    ) -> Result<impl Future<Output = ()> + Send + use<>, TlsError> {
        let (certificate, key) = (certificate.to_owned(), key.to_owned());
        let mut seen = read_pair(&certificate, &key)?;
        self.set_pem(&seen.0, &seen.1)?;
        let this = self.clone();
        Ok(async move {
            let mut tick = tokio::time::interval(RELOAD_INTERVAL);
            let mut complained = None;
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    _ = tick.tick() => {}
                }
                let outcome = read_pair(&certificate, &key).and_then(|new| {
                    if new == seen {
                        return Ok(false);
                    }
                    this.set_pem(&new.0, &new.1)?;
                    seen = new;
                    Ok(true)
                });
                match outcome {
                    Ok(true) => {
                        complained = None;
                        tracing::info!(path = %certificate.display(), "Took a renewed certificate into use.");
                    }
                    Ok(false) => complained = None,
                    Err(error) => {
                        let text = error.to_string();
                        if complained.as_ref() != Some(&text) {
                            tracing::warn!(error = %text, "Kept the old certificate, the new files are not usable.");
                            complained = Some(text);
                        }
                    }
                }
            }
        })
    }

    /// The server side of TLS that presents this certificate.
    ///
    /// With `client_ca` (PEM) a client may present a certificate signed by it; one that presents another is
    /// turned away, one that presents none is let in and [`crate::Peer::has_certificate`] says so.
    ///
    /// # Errors
    /// The client CA is not usable.
    pub fn server_config(&self, client_ca: Option<&[u8]>) -> Result<Arc<ServerConfig>, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Config)?;
        let builder = match client_ca {
            None => builder.with_no_client_auth(),
            Some(pem) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(pem)? {
                    roots
                        .add(certificate)
                        .map_err(|error| TlsError::ClientCa(error.to_string()))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .allow_unauthenticated()
                    .build()
                    .map_err(|error| TlsError::ClientCa(error.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(Resolver(self.clone())));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

#[derive(Debug)]
struct Resolver(Certificate);

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.current.load_full()
    }
}

fn read_pair(certificate: &Path, key: &Path) -> Result<(Vec<u8>, Vec<u8>), TlsError> {
    let read = |what, path: &Path| {
        std::fs::read(path).map_err(|source| TlsError::Read {
            what,
            path: path.to_owned(),
            source,
        })
    };
    Ok((read("certificate", certificate)?, read("private key", key)?))
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| TlsError::Pem {
            what: "certificate",
            reason: error.to_string(),
        })?;
    if chain.is_empty() {
        return Err(TlsError::Pem {
            what: "certificate",
            reason: "it holds no certificate".to_owned(),
        });
    }
    Ok(chain)
}

fn certified_key(certificate: &[u8], key: &[u8]) -> Result<CertifiedKey, TlsError> {
    let chain = certificates(certificate)?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| TlsError::Pem {
        what: "private key",
        reason: error.to_string(),
    })?;
    CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider()).map_err(TlsError::Pair)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Authority;

    const NOW: i64 = 1_800_000_000;

    #[test]
    fn a_key_of_another_certificate_is_refused_and_the_old_pair_stays() {
        let (one, two) = (
            Authority::create(NOW, &["a.svc".to_owned()]).unwrap(),
            Authority::create(NOW, &["a.svc".to_owned()]).unwrap(),
        );
        let certificate = Certificate::default();
        assert!(!certificate.is_set());
        certificate
            .set_pem(one.certificate().as_bytes(), one.key().as_bytes())
            .unwrap();
        let error = certificate
            .set_pem(one.certificate().as_bytes(), two.key().as_bytes())
            .unwrap_err();
        assert!(matches!(error, TlsError::Pair(_)), "{error}");
        assert!(certificate.is_set());
    }

    #[test]
    fn a_missing_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("tls.crt");
        let error = Certificate::default()
            .follow_files(&missing, &folder.path().join("tls.key"), CancellationToken::new())
            .map(drop)
            .unwrap_err();
        assert!(error.to_string().contains(&missing.display().to_string()), "{error}");
    }

    #[test]
    fn text_that_is_no_certificate_says_so() {
        let error = Certificate::default().set_pem(b"hello", b"hello").unwrap_err();
        assert_eq!(
            error.to_string(),
            "the certificate is not usable PEM: it holds no certificate"
        );
    }
}
