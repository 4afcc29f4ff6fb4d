//! Keys, certificates and tokens of one cluster, made anew for each.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use crate::error::Error;
use crate::process::write_atomic;

/// Who a component or a person is to the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum User {
    Admin,
    ControllerManager,
    Scheduler,
    Kubelet,
    KubeProxy,
}

impl User {
    pub(crate) const ALL: [Self; 5] = [
        Self::Admin,
        Self::ControllerManager,
        Self::Scheduler,
        Self::Kubelet,
        Self::KubeProxy,
    ];

    pub(crate) const fn file_name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::ControllerManager => "controller-manager",
            Self::Scheduler => "scheduler",
            Self::Kubelet => "kubelet",
            Self::KubeProxy => "kube-proxy",
        }
    }

    /// User name and groups.
    fn identity(self, node: &str) -> (String, &'static str) {
        match self {
            Self::Admin => ("tessera-admin".to_owned(), "system:masters"),
            Self::ControllerManager => ("system:kube-controller-manager".to_owned(), ""),
            Self::Scheduler => ("system:kube-scheduler".to_owned(), ""),
            Self::Kubelet => (format!("system:node:{node}"), "system:nodes"),
            Self::KubeProxy => ("system:kube-proxy".to_owned(), ""),
        }
    }
}

/// Paths of everything that [`create`] writes, below one folder.
#[derive(Clone, Debug)]
pub(crate) struct Pki {
    dir: PathBuf,
}

impl Pki {
    pub(crate) fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) fn ca_cert(&self) -> PathBuf {
        self.file("ca.crt")
    }

    pub(crate) fn ca_key(&self) -> PathBuf {
        self.file("ca.key")
    }

    /// Certificate and key of the API server, the kubelet or etcd.
    pub(crate) fn server(&self) -> (PathBuf, PathBuf) {
        (self.file("server.crt"), self.file("server.key"))
    }

    /// Certificate and key by which the API server calls etcd and the kubelet.
    pub(crate) fn client(&self) -> (PathBuf, PathBuf) {
        (self.file("client.crt"), self.file("client.key"))
    }

    pub(crate) fn service_account(&self) -> (PathBuf, PathBuf) {
        (self.file("sa.pub"), self.file("sa.key"))
    }

    pub(crate) fn tokens(&self) -> PathBuf {
        self.file("tokens.csv")
    }

    /// Makes everything, with kubeconfig files in `kubeconfigs`.
    pub(crate) fn create(
        &self,
        node: &str,
        node_ip: Ipv4Addr,
        service_ip: Ipv4Addr,
        api_url: &str,
        kubeconfigs: &Path,
    ) -> Result<(), Error> {
        let ca_key = KeyPair::generate()?;
        let mut ca = CertificateParams::default();
        ca.distinguished_name = name("tessera-ca", None);
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let ca_cert = ca.self_signed(&ca_key)?;
        let ca_pem = ca_cert.pem();
        write_atomic(&self.ca_cert(), ca_pem.as_bytes(), 0o644)?;
        write_atomic(&self.ca_key(), ca_key.serialize_pem().as_bytes(), 0o600)?;
        let issuer = Issuer::new(ca, ca_key);

        let mut server = CertificateParams::new(vec![
            "localhost".to_owned(),
            "kubernetes".to_owned(),
            "kubernetes.default".to_owned(),
            "kubernetes.default.svc".to_owned(),
            "kubernetes.default.svc.cluster.local".to_owned(),
            node.to_owned(),
        ])?;
        for ip in [node_ip, service_ip, Ipv4Addr::LOCALHOST] {
            server.subject_alt_names.push(SanType::IpAddress(IpAddr::V4(ip)));
        }
        server.distinguished_name = name("tessera-server", None);
        // etcd calls itself with its own certificate.
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.leaf(&issuer, server, self.server())?;

        let mut client = CertificateParams::default();
        client.distinguished_name = name("tessera-apiserver", Some("system:masters"));
        client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.leaf(&issuer, client, self.client())?;

        let account = KeyPair::generate()?;
        let (public, private) = self.service_account();
        write_atomic(&public, account.public_key_pem().as_bytes(), 0o644)?;
        write_atomic(&private, account.serialize_pem().as_bytes(), 0o600)?;

        let mut rows = String::new();
        for user in User::ALL {
            let token = token()?;
            let (name, groups) = user.identity(node);
            rows.push_str(&format!("{token},{name},{name},\"{groups}\"\n"));
            let path = kubeconfigs.join(format!("{}.kubeconfig", user.file_name()));
            let text = kubeconfig(api_url, &ca_pem, &name, &token);
            write_atomic(&path, text.as_bytes(), 0o600)?;
        }
        write_atomic(&self.tokens(), rows.as_bytes(), 0o600)
    }

    fn leaf(
        &self,
        issuer: &Issuer<'_, KeyPair>,
        mut params: CertificateParams,
        (cert_path, key_path): (PathBuf, PathBuf),
    ) -> Result<(), Error> {
        let key = KeyPair::generate()?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let cert = params.signed_by(&key, issuer)?;
        write_atomic(&cert_path, cert.pem().as_bytes(), 0o644)?;
        write_atomic(&key_path, key.serialize_pem().as_bytes(), 0o600)
    }
}

fn name(common: &str, organization: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name
}

/// 32 random bytes of the kernel, as hexadecimal digits.
fn token() -> Result<String, Error> {
    use crate::error::IoContext;
    use std::io::Read;
    let path = "/dev/urandom";
    let mut bytes = [0_u8; 32];
    std::fs::File::open(path)
        .and_then(|mut f| f.read_exact(&mut bytes))
        .at("read", path)?;
    Ok(crate::hex(&bytes))
}

fn kubeconfig(api_url: &str, ca_pem: &str, user: &str, token: &str) -> String {
    // JSON is YAML; every reader of kubeconfig files takes it.
    let value = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "tessera",
        "clusters": [{"name": "tessera", "cluster": {
            "server": api_url,
            "certificate-authority-data": base64(ca_pem.as_bytes()),
        }}],
        "contexts": [{"name": "tessera", "context": {"cluster": "tessera", "user": user}}],
        "users": [{"name": user, "user": {"token": token}}],
    });
    format!("{value:#}\n")
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let at = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let word = at(0) << 16 | at(1) << 8 | at(2);
        for i in 0..4_usize {
            if i <= chunk.len() {
                let digit = (word >> (18 - 6 * i)) & 63;
                text.push(char::from(DIGITS[digit as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_agrees_with_the_rfc() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn secrets_are_readable_by_their_owner_only_and_differ_between_clusters() {
        use std::os::unix::fs::PermissionsExt;
        let make = || {
            let dir = tempfile::tempdir().unwrap();
            let pki = Pki::at(dir.path().to_path_buf());
            let ip = Ipv4Addr::new(10, 234, 7, 1);
            pki.create("node-1", ip, ip, "https://10.234.7.1:6443", dir.path())
                .unwrap();
            (dir, pki)
        };
        let (first, pki) = make();
        for secret in [
            pki.ca_key(),
            pki.server().1,
            pki.client().1,
            pki.service_account().1,
            pki.tokens(),
            first.path().join("admin.kubeconfig"),
        ] {
            let mode = std::fs::metadata(&secret).unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{}", secret.display());
        }
        let (_second, other) = make();
        let tokens = |pki: &Pki| std::fs::read_to_string(pki.tokens()).unwrap();
        assert_ne!(tokens(&pki), tokens(&other));
        assert!(tokens(&pki).contains(",system:node:node-1,system:node:node-1,\"system:nodes\""));

        let config = kube::config::Kubeconfig::read_from(first.path().join("admin.kubeconfig"));
        assert_eq!(config.unwrap().clusters.len(), 1);
    }
}
