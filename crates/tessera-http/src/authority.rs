//! An own certificate authority that renews itself without a gap.
//!
//! A webhook needs a certificate that the API server trusts. Instead of asking for cert-manager or a one-shot
//! job, the leader keeps a small authority in a Secret. Everything here is a pure function of that state and
//! the time: [`Authority::step`] says what the next state is, the caller stores it.
//!
//! A new authority is first only *trusted* (its certificate stands in the bundle beside the old one) and signs
//! the serving certificate only after [`OVERLAP_SECONDS`]; the old one leaves the bundle only after the same
//! time again. So at every moment whatever certificate any replica still serves is trusted by whatever bundle
//! any API server still has.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde::{Deserialize, Serialize};

/// How long an authority lives, seconds: one year.
pub const AUTHORITY_SECONDS: i64 = 365 * DAY;
/// How long a serving certificate lives, seconds: 30 days.
pub const SERVING_SECONDS: i64 = 30 * DAY;
/// How long old and new stand side by side at each change, seconds: ten minutes.
pub const OVERLAP_SECONDS: i64 = 600;

const DAY: i64 = 24 * 3600;
/// Certificates begin in the past, since clocks of machines differ.
const BACKDATE_SECONDS: i64 = 24 * 3600;

/// The authority's state cannot be read or a certificate cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The stored text is not ours.
    #[error("the stored certificate authority does not parse: {0}")]
    State(#[from] serde_json::Error),
    /// The certificate library refuses.
    #[error("a certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
}

/// The state: who signs, and what is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Authority {
    /// Oldest first; never empty.
    authorities: Vec<Signer>,
    serving: Serving,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signer {
    name: String,
    certificate: String,
    key: String,
    since: i64,
    until: i64,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Serving {
    issuer: String,
    certificate: String,
    key: String,
    since: i64,
    until: i64,
    names: Vec<String>,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer")
            .field("name", &self.name)
            .field("until", &self.until)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Serving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Serving")
            .field("issuer", &self.issuer)
            .field("until", &self.until)
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// A new authority with a serving certificate for `names` (DNS names and IP addresses), at `now` (Unix
    /// seconds).
    ///
    /// # Errors
    /// A name is neither a DNS name nor an IP address.
    pub fn create(now: i64, names: &[String]) -> Result<Self, AuthorityError> {
        let signer = Signer::create(now)?;
        let serving = signer.issue(now, names)?;
        Ok(Self {
            authorities: vec![signer],
            serving,
        })
    }

    /// Reads what [`Authority::to_json`] wrote.
    ///
    /// # Errors
    /// The text is not such a state.
    pub fn from_json(text: &[u8]) -> Result<Self, AuthorityError> {
        Ok(serde_json::from_slice(text)?)
    }

    /// The whole state with its private keys; belongs in a Secret.
    ///
    /// # Errors
    /// Never in practice; serialisation is fallible by type.
    pub fn to_json(&self) -> Result<String, AuthorityError> {
        Ok(serde_json::to_string(self)?)
    }

    /// What clients must trust: all authorities' certificates, PEM.
    #[must_use]
    pub fn bundle(&self) -> String {
        self.authorities
            .iter()
            .map(|signer| signer.certificate.as_str())
            .collect()
    }

    /// The serving certificate, PEM.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.serving.certificate
    }

    /// The serving certificate's private key, PEM.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.serving.key
    }

    /// When the serving certificate ends, Unix seconds.
    #[must_use]
    pub fn serving_until(&self) -> i64 {
        self.serving.until
    }

    /// The state that should follow at `now`, `None` if nothing is due.
    ///
    /// Call it only once clients trust the current [`Authority::bundle`]; each call makes the changes that are
    /// safe under that condition.
    ///
    /// # Errors
    /// A certificate cannot be made.
    pub fn step(&self, now: i64, names: &[String]) -> Result<Option<Self>, AuthorityError> {
        let mut next = self.clone();
        // An authority that ended while nobody was looking helps no one; if it was the last one, start over.
        next.authorities.retain(|signer| signer.until > now);
        let Some(newest) = next.authorities.last() else {
            return Self::create(now, names).map(Some);
        };
        if aged(newest.since, newest.until, now) {
            next.authorities.push(Signer::create(now)?);
        }
        // The newest that has been trusted long enough signs; if none has, the oldest, which has been longest.
        let signer = next
            .authorities
            .iter()
            .rev()
            .find(|signer| now - signer.since >= OVERLAP_SECONDS)
            .or(next.authorities.first())
            .expect("an authority was found above and none was removed since");
        let due = signer.name != next.serving.issuer
            || next.serving.names != names
            || aged(next.serving.since, next.serving.until, now);
        if due {
            next.serving = signer.issue(now, names)?;
        }
        let issuer_is_newest = next
            .authorities
            .last()
            .is_some_and(|newest| newest.name == next.serving.issuer);
        if issuer_is_newest && now - next.serving.since >= OVERLAP_SECONDS && next.authorities.len() > 1 {
            let name = next.serving.issuer.clone();
            next.authorities.retain(|signer| signer.name == name);
        }
        Ok((next != *self).then_some(next))
    }
}

/// Two thirds of the life are over.
fn aged(since: i64, until: i64, now: i64) -> bool {
    (now - since).saturating_mul(3) >= (until - since).saturating_mul(2)
}

impl Signer {
    fn create(now: i64) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate()?;
        let until = now + AUTHORITY_SECONDS;
        let name = format!("tessera webhook authority {now}");
        let certificate = Self::params(&name, now, until).self_signed(&key)?.pem();
        Ok(Self {
            name,
            certificate,
            key: key.serialize_pem(),
            since: now,
            until,
        })
    }

    fn params(name: &str, since: i64, until: i64) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_times(&mut params, since, until);
        params
    }

    fn issue(&self, now: i64, names: &[String]) -> Result<Serving, AuthorityError> {
        let mut params = CertificateParams::new(names)?;
        let until = (now + SERVING_SECONDS).min(self.until);
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(
            DnType::CommonName,
            names.first().map_or("tessera", |name| name.get(..64).unwrap_or(name)),
        );
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        set_times(&mut params, now, until);
        let key = KeyPair::generate()?;
        let issuer = Issuer::new(
            Self::params(&self.name, self.since, self.until),
            KeyPair::from_pem(&self.key)?,
        );
        let certificate = params.signed_by(&key, &issuer)?.pem();
        Ok(Serving {
            issuer: self.name.clone(),
            certificate,
            key: key.serialize_pem(),
            since: now,
            until,
            names: names.to_vec(),
        })
    }
}

fn set_times(params: &mut CertificateParams, since: i64, until: i64) {
    // The library's own time type, reached through its constructor for a date.
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let seconds = |t: i64| std::time::Duration::from_secs(u64::try_from(t).unwrap_or(0));
    params.not_before = epoch + seconds(since - BACKDATE_SECONDS);
    params.not_after = epoch + seconds(until);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier as _;
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn names() -> Vec<String> {
        vec!["tessera.kube-system.svc".to_owned(), "127.0.0.1".to_owned()]
    }

    /// Whether a client with `bundle` trusts `certificate` for the service's name at `now`.
    fn trusts(bundle: &str, certificate: &str, now: i64) -> bool {
        let mut roots = rustls::RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
            roots.add(root.unwrap()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .unwrap();
        let leaf = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
        let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now.try_into().unwrap()));
        let name = ServerName::try_from("tessera.kube-system.svc").unwrap();
        verifier.verify_server_cert(&leaf, &[], &name, &[], time).is_ok()
    }

    #[test]
    fn a_new_authority_is_trusted_and_survives_its_own_text() {
        let authority = Authority::create(NOW, &names()).unwrap();
        assert!(trusts(&authority.bundle(), authority.certificate(), NOW));
        assert_eq!(
            Authority::from_json(authority.to_json().unwrap().as_bytes()).unwrap(),
            authority
        );
        assert_eq!(authority.step(NOW + OVERLAP_SECONDS, &names()).unwrap(), None);
    }

    #[test]
    fn other_names_bring_a_new_certificate_at_once() {
        let authority = Authority::create(NOW, &names()).unwrap();
        let next = authority.step(NOW + 5, &["other.svc".to_owned()]).unwrap().unwrap();
        assert_ne!(next.certificate(), authority.certificate());
        assert_eq!(next.bundle(), authority.bundle());
    }

    /// Three years, a look every five minutes: whoever still holds the previous bundle or serves the previous
    /// certificate is never cut off, and both do change.
    #[test]
    fn rotation_never_leaves_a_gap() {
        let mut now = NOW;
        let mut current = Authority::create(now, &names()).unwrap();
        let (mut certificates, mut bundles) = (0, 0);
        while now < NOW + 3 * AUTHORITY_SECONDS {
            // Big steps while nothing is due, small ones around a change.
            now += 300;
            let Some(next) = current.step(now, &names()).unwrap() else {
                now += 6 * 3600;
                continue;
            };
            assert!(
                trusts(&current.bundle(), next.certificate(), now),
                "an API server with the old bundle"
            );
            assert!(
                trusts(&next.bundle(), current.certificate(), now),
                "a replica with the old certificate"
            );
            certificates += i32::from(next.certificate() != current.certificate());
            bundles += i32::from(next.bundle() != current.bundle());
            current = next;
        }
        assert!(certificates >= 36, "{certificates}");
        assert!(bundles >= 6, "{bundles}");
        assert_eq!(current.authorities.len(), 1);
    }

    #[test]
    fn an_authority_that_ended_unseen_is_replaced() {
        let authority = Authority::create(NOW, &names()).unwrap();
        let later = NOW + 2 * AUTHORITY_SECONDS;
        let next = authority.step(later, &names()).unwrap().unwrap();
        assert!(trusts(&next.bundle(), next.certificate(), later));
    }
}
