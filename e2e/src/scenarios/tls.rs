//! TLS, logins and certificates on real parts, and their rotation under load.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::load::Load;
use crate::bed::Bed;
use crate::fleet::at;
use crate::scenario;
use crate::stack::certificates::{Authority, Certificate};
use crate::stack::mosquitto::{Guard, Setup};
use crate::suite::Scenario;
use crate::worker::Worker;

const LONG: Duration = Duration::from_secs(40);
const LOGIN: &str = "auth: {username: {secretKeyRef: {name: mqtt, key: username}}, password: {secretKeyRef: {name: mqtt, key: password}}}";
const CA: &str = "tls: {ca: {configMapKeyRef: {name: bundle, key: ca.crt}}}";
const BOTH: &str =
    "tls: {ca: {configMapKeyRef: {name: bundle, key: ca.crt}}, clientCertificate: {secretName: own}}";

pub fn all() -> Vec<Scenario> {
    let guarded =
        |guard, scenario| Scenario { setup: Setup { guard: Some(guard), ..Setup::default() }, ..scenario };
    vec![
        guarded(
            Guard::Password,
            scenario!(a_broker_is_trusted_by_the_given_authority_and_its_name_and_knows_the_login[broker]),
        ),
        guarded(
            Guard::Certificate,
            scenario!(a_broker_that_requires_a_certificate_gets_the_one_of_the_manifest[broker]),
        ),
        scenario!(a_database_is_verified_in_full_and_knows_the_worker_by_its_certificate[server]),
        guarded(Guard::Password, scenario!(a_brokers_password_is_rotated_under_load[broker])),
        guarded(
            Guard::Certificate,
            scenario!(certificates_and_authority_of_a_broker_are_rotated_under_load[broker]),
        ),
        scenario!(a_databases_password_is_rotated_under_load[server]),
    ]
}

/// Writes the manifest for the broker's listener with TLS.
fn manifest(bed: &mut Bed, host: &str, lines: &[&str]) -> Result<()> {
    let (plain, port) = (bed.address.clone(), bed.broker()?.secure_port);
    let section = lines.join("\n      ");
    bed.manifest(|text| {
        text.replace(&format!("mqtt://{plain}"), &format!("mqtts://{host}:{port}\n      {section}"))
    })
    .map(drop)
}

fn own(bed: &Bed, own: &Certificate) -> Result<()> {
    bed.secret("own", "tls.crt", &own.certificate)?;
    bed.secret("own", "tls.key", &own.key)
}

async fn stores_a_message(bed: &Bed, worker: &Worker) -> Result<()> {
    let payload = format!(r#"{{"schema":"v1","ts":"{}","points":[{{"name":"p0","v":1}}]}}"#, at(1));
    bed.publish_one("traksense/t0/s1/dev-00001/telem", payload).await?;
    worker.metric("it is stored", LONG, |m| m.get("ingest_points_total") == 1.0).await.map(drop)
}

async fn a_broker_is_trusted_by_the_given_authority_and_its_name_and_knows_the_login(
    bed: &mut Bed,
) -> Result<()> {
    bed.migrate().await?;
    let (authority, other) = (Authority::new("right")?, Authority::new("wrong")?);
    bed.broker()?.certify(&authority)?;
    bed.broker()?.stop()?;
    bed.broker()?.start_again()?;
    bed.broker()?.set_password("worker", "broker-secret")?;
    bed.secret("mqtt", "username", "worker")?;
    bed.secret("mqtt", "password", "broker-secret")?;
    bed.secret("bundle", "ca.crt", &authority.pem())?;

    manifest(bed, "127.0.0.1", &[LOGIN, CA])?;
    let worker = bed.start("one", &[])?;
    let why = worker.not_ready("tls_refused").await?.to_string();
    ensure!(why.contains("the URL must name the broker as its certificate does"), "a wrong name: {why}");
    worker.stop(LONG).await?;

    manifest(bed, "localhost", &[LOGIN])?;
    let worker = bed.start("one", &[])?;
    let why = worker.not_ready("tls_refused").await?.to_string();
    ensure!(why.contains("no authority in tls.ca (or of this system"), "the system's authorities: {why}");
    worker.stop(LONG).await?;

    // From here on the files alone change.
    manifest(bed, "localhost", &[LOGIN, CA])?;
    bed.secret("bundle", "ca.crt", &other.pem())?;
    bed.secret("mqtt", "password", "wrong-secret")?;
    let worker = bed.start("one", &[])?;
    let why = worker.not_ready("tls_refused").await?.to_string();
    ensure!(why.contains("no authority in tls.ca"), "another authority: {why}");
    bed.secret("bundle", "ca.crt", &authority.pem())?;
    worker.not_ready("login_refused").await?;
    bed.secret("mqtt", "password", "broker-secret")?;
    worker.ready().await?;
    stores_a_message(bed, &worker).await
}

async fn a_broker_that_requires_a_certificate_gets_the_one_of_the_manifest(bed: &mut Bed) -> Result<()> {
    bed.migrate().await?;
    let (authority, other) = (Authority::new("right")?, Authority::new("wrong")?);
    bed.broker()?.certify(&authority)?;
    bed.broker()?.stop()?;
    bed.broker()?.start_again()?;
    bed.secret("bundle", "ca.crt", &authority.pem())?;

    manifest(bed, "localhost", &[CA])?;
    let worker = bed.start("one", &[])?;
    let why = worker.not_ready("tls_refused").await?.to_string();
    ensure!(why.contains("give tls.clientCertificate"), "no certificate: {why}");
    worker.stop(LONG).await?;

    manifest(bed, "localhost", &[BOTH])?;
    own(bed, &other.sign("worker")?)?;
    let worker = bed.start("one", &[])?;
    let why = worker.not_ready("tls_refused").await?.to_string();
    ensure!(why.contains("does not take the certificate in tls.clientCertificate"), "another's: {why}");
    own(bed, &authority.sign("worker")?)?;
    worker.ready().await?;
    stores_a_message(bed, &worker).await
}

async fn a_database_is_verified_in_full_and_knows_the_worker_by_its_certificate(bed: &mut Bed) -> Result<()> {
    bed.migrate().await?;
    let (authority, other) = (Authority::new("right")?, Authority::new("wrong")?);
    bed.server()?.certify(&authority)?;
    let user = format!("{}_worker", bed.database.name);
    bed.server()?.require("hostssl", &user, "cert")?;
    let by_host = |host: &str| {
        let mut url = url::Url::parse(&bed.database.worker_url)?;
        url.set_host(Some(host))?;
        url.set_password(None).ok();
        Ok::<_, anyhow::Error>(url.to_string())
    };
    let (by_name, by_address) = (by_host("localhost")?, by_host("127.0.0.1")?);
    bed.manifest(|text| text.replace("key: url}}}", &format!("key: url}}}}, {BOTH}}}")))?;
    bed.secret("bundle", "ca.crt", &other.pem())?;
    own(bed, &other.sign(&user)?)?;
    bed.secret("timescale", "url", &by_address)?;

    let worker = bed.start("one", &[])?;
    worker.logs("UnknownIssuer", LONG).await?;
    bed.secret("bundle", "ca.crt", &authority.pem())?;
    worker.logs("not valid for name", LONG).await?;
    bed.secret("timescale", "url", &by_name)?;
    worker.logs("UnknownCA", LONG).await?;
    own(bed, &authority.sign("somebody")?)?;
    worker.logs("certificate authentication failed", LONG).await?;
    own(bed, &authority.sign(&user)?)?;
    worker.ready().await?;
    stores_a_message(bed, &worker).await?;
    let encrypted: i64 = bed
        .sql("SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'penstock-worker' AND NOT ssl")
        .await?;
    ensure!(encrypted == 0, "{encrypted} connections of the worker are in clear");
    Ok(())
}

async fn a_brokers_password_is_rotated_under_load(bed: &mut Bed) -> Result<()> {
    bed.migrate().await?;
    let authority = Authority::new("right")?;
    bed.broker()?.certify(&authority)?;
    bed.broker()?.stop()?;
    bed.broker()?.start_again()?;
    bed.broker()?.set_password("worker", "first-secret")?;
    bed.secret("bundle", "ca.crt", &authority.pem())?;
    bed.secret("mqtt", "username", "worker")?;
    bed.secret("mqtt", "password", "first-secret")?;
    manifest(bed, "localhost", &[LOGIN, CA])?;
    let worker = bed.start("one", &[])?;
    worker.ready().await?;
    let load = Load::mixed(bed, 500.0);
    worker.metric("messages flow", LONG, |m| m.get("ingest_committed_total") > 500.0).await?;

    // A file that is gone changes nothing and is named.
    std::fs::remove_file(bed.secrets().join("mqtt/password"))?;
    worker.logs("keeping the last good credentials", LONG).await?;
    worker.logs("mqtt/password", LONG).await?;
    ensure!(worker.readiness().await?.0, "it goes on with what it had");
    // Mosquitto ends connections whose password is no longer right.
    bed.broker()?.set_password("worker", "second-secret")?;
    worker.not_ready("login_refused").await?;
    bed.secret("mqtt", "password", "second-secret")?;
    worker.ready().await?;

    let before = worker.metrics().await?;
    bed.broker()?.stop()?;
    worker.not_ready("broker_away").await?;
    bed.broker()?.start_again()?;
    worker.ready().await?;
    let (_, metrics) = load.finish(bed, &worker).await?;
    ensure!(metrics.get("ingest_mqtt_epoch") > before.get("ingest_mqtt_epoch"), "it connected again");
    ensure!(metrics.get("ingest_mqtt_sessions_lost_total") == 0.0, "the session was kept");
    Ok(())
}

async fn certificates_and_authority_of_a_broker_are_rotated_under_load(bed: &mut Bed) -> Result<()> {
    bed.migrate().await?;
    let (old, new) = (Authority::new("old")?, Authority::new("new")?);
    bed.broker()?.certify(&old)?;
    bed.broker()?.stop()?;
    bed.broker()?.start_again()?;
    bed.secret("bundle", "ca.crt", &old.pem())?;
    own(bed, &old.sign("worker")?)?;
    manifest(bed, "localhost", &[BOTH])?;
    let worker = bed.start("one", &[])?;
    worker.ready().await?;
    let load = Load::mixed(bed, 500.0);
    worker.metric("messages flow", LONG, |m| m.get("ingest_committed_total") > 500.0).await?;

    bed.secret("bundle", "ca.crt", &format!("{}{}", old.pem(), new.pem()))?;
    own(bed, &new.sign("worker")?)?;
    worker.logs("credentials were read anew", LONG).await?;
    // A half-written key is not taken.
    bed.secret("own", "tls.key", "-----BEGIN PRIVATE KEY-----\nhalf-secret")?;
    worker.logs("own/tls.key", LONG).await?;
    own(bed, &new.sign("worker")?)?;
    let before = worker.metrics().await?;
    ensure!(before.get("ingest_mqtt_epoch") == 1.0, "the present connection stays");
    worker
        .metric("messages flow", LONG, |m| {
            m.get("ingest_committed_total") > before.get("ingest_committed_total") + 1000.0
        })
        .await?;

    bed.broker()?.certify(&new)?;
    bed.broker()?.stop()?;
    worker.not_ready("broker_away").await?;
    bed.broker()?.start_again()?;
    worker.ready().await?;
    bed.secret("bundle", "ca.crt", &new.pem())?;
    let (_, metrics) = load.finish(bed, &worker).await?;
    ensure!(metrics.get("ingest_mqtt_sessions_lost_total") == 0.0, "the session was kept");
    Ok(())
}

async fn a_databases_password_is_rotated_under_load(bed: &mut Bed) -> Result<()> {
    bed.migrate().await?;
    let user = format!("{}_worker", bed.database.name);
    bed.server()?.require("host", &user, "scram-sha-256")?;
    bed.manifest(|text| text)?;
    let worker = bed.start("one", &[])?;
    worker.ready().await?;
    let load = Load::mixed(bed, 500.0);
    worker.metric("messages flow", LONG, |m| m.get("ingest_committed_total") > 500.0).await?;

    bed.execute(&format!("ALTER ROLE {user} PASSWORD 'rotated-secret'")).await?;
    let terminate = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'penstock-worker'";
    ensure!(bed.sql::<i64>(terminate).await? > 0, "there were connections to end");
    // The old password: refused, and nothing is given up.
    worker.not_ready("password authentication failed").await?;
    bed.secret("timescale", "url", &bed.database.url_of(&user, "rotated-secret")?)?;
    worker.ready().await?;
    let before = worker.metrics().await?;
    worker
        .metric("messages flow again", LONG, |m| {
            m.get("ingest_committed_total") > before.get("ingest_committed_total") + 500.0
        })
        .await?;
    load.finish(bed, &worker).await.map(drop)
}
