//! Certificates that last for a test.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};
use rustls::crypto::ring;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

use super::super::{Tls, TlsFiles};

/// One that signs.
pub(super) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// When a certificate is valid.
#[derive(Clone, Copy)]
pub(super) enum Validity {
    Past,
    Now,
    Future,
}

/// Files have names of their own.
static NEXT: AtomicU32 = AtomicU32::new(0);

impl Authority {
    pub(super) fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        params.distinguished_name.push(DnType::CommonName, format!("authority {number}"));
        let key = KeyPair::generate().unwrap();
        Authority(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    /// An identity with `names` that it has signed, and itself to trust.
    pub(super) fn files(&self, folder: &Path, names: &[&str], validity: Validity) -> TlsFiles {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        (params.not_before, params.not_after) = match validity {
            Validity::Past => (date_time_ymd(1990, 1, 1), date_time_ymd(1991, 1, 1)),
            Validity::Now => (date_time_ymd(1990, 1, 1), date_time_ymd(4000, 1, 1)),
            Validity::Future => (date_time_ymd(3999, 1, 1), date_time_ymd(4000, 1, 1)),
        };
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let file = |name: &str, text: String| {
            let path = folder.join(format!("{name}{number}.pem"));
            fs::write(&path, text).unwrap();
            path
        };
        TlsFiles {
            authority: file("authority", self.0.pem()),
            certificate: file("certificate", certificate.pem()),
            key: file("key", key.serialize_pem()),
            peer_name: None,
        }
    }

    pub(super) fn tls(&self, folder: &Path, names: &[&str], validity: Validity) -> Tls {
        Tls::from_files(&self.files(folder, names, validity)).unwrap()
    }

    /// One that has `name` and expects it.
    pub(super) fn tls_for(&self, folder: &Path, name: &str) -> Tls {
        let files = self.files(folder, &[name], Validity::Now);
        Tls::from_files(&TlsFiles { peer_name: Some(name.to_owned()), ..files }).unwrap()
    }

    /// An identity that this has signed, and that trusts `other`.
    pub(super) fn tls_trusting(&self, folder: &Path, names: &[&str], other: &Authority) -> Tls {
        let authority = other.files(folder, names, Validity::Now).authority;
        let own = self.files(folder, names, Validity::Now);
        Tls::from_files(&TlsFiles { authority, ..own }).unwrap()
    }

    /// A peer that trusts it and has nothing to show.
    pub(super) fn anonymous(&self) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        let provider = Arc::new(ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"slat-pages".to_vec()];
        TlsConnector::from(Arc::new(config))
    }
}
