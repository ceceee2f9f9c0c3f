use std::fs;
use std::path::Path;

use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};

use super::*;

const PLANT: &str = include_str!("../../../../examples/worker.yaml");
const LOGIN: &str = "auth: {username: {secretKeyRef: {name: mqtt, key: username}}, password: {secretKeyRef: {name: mqtt, key: password}}}";
const TLS: &str =
    "tls: {ca: {secretKeyRef: {name: mqtt, key: ca.crt}}, clientCertificate: {secretName: mqtt}}";

fn put(folder: &Path, name: &str, key: &str, value: &str) {
    fs::create_dir_all(folder.join(name)).unwrap();
    fs::write(folder.join(name).join(key), value).unwrap();
}

/// A CA, and a certificate that it signed with its key.
fn certificates() -> (String, String, String) {
    let authority =
        CertifiedIssuer::self_signed(CertificateParams::default(), KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let own = CertificateParams::new(["worker".to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    (authority.pem(), own.pem(), key.serialize_pem())
}

/// A manifest with a login and TLS on both sides, and good files for it.
fn sources(folder: &Path) -> (Sources, Manifest) {
    let text = PLANT
        .replace(
            "url: mqtt://127.0.0.1:1883",
            &format!("url: mqtts://broker:8883\n      {LOGIN}\n      {TLS}"),
        )
        .replace("key: url}}}", &format!("key: url}}}}, {TLS}}}"));
    let manifest = Manifest::parse(&text).unwrap();
    let (ca, certificate, key) = certificates();
    for (name, value) in [
        ("username", "worker"),
        ("password", "first-secret\n"),
        ("ca.crt", &*ca),
        ("tls.crt", &*certificate),
        ("tls.key", &*key),
    ] {
        put(folder, "mqtt", name, value);
    }
    put(folder, "timescale", "url", "postgres://worker:db-secret@localhost/plant");
    let sources =
        Sources { manifest: folder.join("plant.yaml"), plan: None, secrets: folder.to_owned(), shard: 0 };
    (sources, manifest)
}

fn password(access: &watch::Sender<Access>) -> String {
    access.borrow().broker.login.as_ref().unwrap().password.clone()
}

#[test]
fn changed_files_are_handed_on_and_missing_or_wrong_ones_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (sources, manifest) = sources(folder.path());
    let (access, mut seen) = watch::channel(sources.access(&manifest).unwrap());
    let mut reload = Reload::new(sources, manifest);
    reload.look(&access);
    assert_eq!(password(&access), "first-secret");
    seen.mark_unchanged();

    reload.look(&access);
    assert!(!seen.has_changed().unwrap(), "the same files again");
    put(folder.path(), "mqtt", "password", "second-secret");
    reload.look(&access);
    assert!(seen.has_changed().unwrap());
    assert_eq!(password(&access), "second-secret");

    seen.mark_unchanged();
    fs::remove_file(folder.path().join("mqtt/password")).unwrap();
    reload.look(&access);
    put(folder.path(), "mqtt", "password", "third-secret");
    put(folder.path(), "mqtt", "ca.crt", "no certificate");
    reload.look(&access);
    put(folder.path(), "mqtt", "ca.crt", &certificates().0);
    put(folder.path(), "timescale", "url", "nonsense");
    reload.look(&access);
    assert!(!seen.has_changed().unwrap(), "a file is missing or wrong");
    assert_eq!(password(&access), "second-secret");

    put(folder.path(), "timescale", "url", "postgres://other:db-secret@localhost/plant");
    reload.look(&access);
    assert_eq!(password(&access), "third-secret");
    assert_eq!(access.borrow().database.get_username(), "other");
}

#[test]
fn a_wrong_file_is_named_and_nothing_of_it_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let (sources, manifest) = sources(folder.path());
    let key = fs::read_to_string(folder.path().join("mqtt/tls.key")).unwrap();
    let other = certificates();
    for (name, file, value, message) in [
        ("mqtt", "ca.crt", "-----BEGIN SECRET-----abc", "the value of mqtt/ca.crt is no certificate in PEM"),
        ("mqtt", "ca.crt", &*key, "the value of mqtt/ca.crt is no certificate in PEM"),
        (
            "mqtt",
            "tls.key",
            "-----BEGIN PRIVATE KEY-----SECRET",
            "the value of mqtt/tls.key is no private key in PEM",
        ),
        (
            "mqtt",
            "tls.crt",
            &*other.1,
            "the value of mqtt/tls.key is not the key of the certificate in tls.crt beside it",
        ),
        (
            "timescale",
            "url",
            "postgres://SECRET:SECRET@:/:",
            "the value of timescale/url is not a database URL; write postgres://user:password@host:5432/database",
        ),
        (
            "timescale",
            "url",
            "postgres://u:SECRET@h/d?sslmode=require",
            "the value of timescale/url is a URL whose sslmode verifies nothing, although tls is given; leave sslmode out, or write verify-full",
        ),
    ] {
        let path = folder.path().join(name).join(file);
        let good = fs::read_to_string(&path).unwrap();
        fs::write(&path, value).unwrap();
        assert_eq!(sources.access(&manifest).unwrap_err().to_string(), message);
        fs::write(&path, good).unwrap();
    }
    fs::remove_file(folder.path().join("mqtt/tls.key")).unwrap();
    let missing = sources.access(&manifest).unwrap_err().to_string();
    assert!(
        missing.contains("mqtt/tls.key") && missing.contains("PENSTOCK_SECRET_MQTT_TLS_KEY"),
        "{missing}"
    );
}

#[test]
fn a_database_with_tls_is_verified_in_full_unless_the_url_asks_for_its_authority_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (sources, manifest) = sources(folder.path());
    let mode = |url: &str| {
        put(folder.path(), "timescale", "url", url);
        sources.access(&manifest).unwrap().database.get_ssl_mode()
    };
    assert!(matches!(mode("postgres://u:p@h/d"), PgSslMode::VerifyFull));
    assert!(matches!(mode("postgres://u:p@h/d?sslmode=verify-full"), PgSslMode::VerifyFull));
    assert!(matches!(mode("postgres://u:p@h/d?sslmode=verify-ca"), PgSslMode::VerifyCa));
}
