//! The schema, its roles, what the commands say, and what the metrics show.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sqlx::{Connection, Executor, PgConnection};

use super::load::Load;
use crate::bed::{Bed, require_identities};
use crate::fleet::{Fleet, at};
use crate::proxy::{Mode, Proxy};
use crate::publisher::{Outgoing, Progress};
use crate::scenario;
use crate::suite::Scenario;
use crate::worker;

const LONG: Duration = Duration::from_secs(40);

pub fn all() -> Vec<Scenario> {
    vec![
        scenario!(two_tenants_roles_do_not_see_each_others_rows),
        scenario!(migrating_twice_and_by_three_at_once_is_safe),
        scenario!(plain_postgresql_without_timescaledb_stores_all_the_same[server, plain]),
        scenario!(the_original_services_columns_are_there),
        scenario!(a_wrong_manifest_is_refused_with_its_path_and_what_would_be_right),
        scenario!(check_says_what_broker_and_database_grant),
        scenario!(a_worker_waits_for_a_schema_and_says_so),
        scenario!(every_metric_is_populated),
    ]
}

async fn two_tenants_roles_do_not_see_each_others_rows(bed: &mut Bed) -> Result<()> {
    let worker = bed.worker().await?;
    let fleet = Fleet { mixed: true, ..Fleet::steady(&bed.address, 2000.0, 4000) };
    fleet.run(std::sync::Arc::new(Progress::default())).await?;
    worker.idle().await?;
    let login = |tenant: &str| format!("{}_{tenant}", bed.database.name);
    for tenant in ["t0", "t1"] {
        let role = login(tenant);
        bed.execute(&format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'x-secret' IN ROLE penstock_reader; \
             INSERT INTO penstock.tenant_role SELECT '{role}', tenant_id FROM penstock.tenant WHERE name = '{tenant}'"
        ))
        .await?;
    }
    let views = ["readings", "events", "ts_measure", "cmd_ack", "dead_letters", "ingest_errors"];
    for tenant in ["t0", "t1"] {
        let mut reader = PgConnection::connect(&bed.database.url_of(&login(tenant), "x-secret")?).await?;
        for view in views {
            let column =
                if matches!(view, "readings" | "events" | "dead_letters") { "tenant" } else { "tenant_id" };
            let query = format!("SELECT DISTINCT {column} FROM penstock.{view}");
            let seen: Vec<String> = sqlx::query_scalar(&query).fetch_all(&mut reader).await?;
            ensure!(seen == [tenant], "{tenant} sees {seen:?} in {view}");
        }
        for denied in [
            "sample",
            "series",
            "device",
            "tenant",
            "dead_letter",
            "command_ack",
            "event",
            "tenant_role",
            "shard_lease",
        ] {
            let answer = reader.execute(format!("SELECT 1 FROM penstock.{denied}").as_str()).await;
            let denial = answer.as_ref().err().and_then(sqlx::Error::as_database_error);
            let code = denial.and_then(sqlx::error::DatabaseError::code);
            ensure!(code.as_deref() == Some("42501"), "{tenant} may read {denied}: {code:?}");
        }
        // Chunks inherit grants; there is none to inherit.
        let chunk: Option<String> = bed
            .sql("SELECT (SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE tablename LIKE '_hyper_%' LIMIT 1)")
            .await?;
        if let Some(chunk) = chunk {
            ensure!(
                reader.execute(format!("SELECT 1 FROM {chunk}").as_str()).await.is_err(),
                "{tenant} may read {chunk}"
            );
        }
        reader.close().await?;
    }
    Ok(())
}

async fn migrating_twice_and_by_three_at_once_is_safe(bed: &mut Bed) -> Result<()> {
    let (manifest, secrets) = (bed.manifest(|text| text)?, bed.secrets());
    let migrate = || worker::command(&["migrate"], &manifest, &secrets);
    let (a, b, c) = tokio::try_join!(migrate(), migrate(), migrate())?;
    let again = migrate().await?;
    for (good, said) in [a, b, c, again] {
        ensure!(good && said.contains("\"schemaVersion\""), "migrate: {said}");
    }
    let hypertables: i64 = bed.sql("SELECT count(*) FROM timescaledb_information.hypertables").await?;
    let indexes: i64 = bed
        .sql("SELECT count(*) FROM pg_indexes WHERE schemaname = 'penstock' AND tablename = 'sample'")
        .await?;
    ensure!((hypertables, indexes) == (1, 1), "{hypertables} hypertables, {indexes} indexes on sample");
    let owner: String = bed
        .sql("SELECT tableowner FROM pg_tables WHERE tablename = 'sample' AND schemaname = 'penstock'")
        .await?;
    ensure!(owner == format!("{}_owner", bed.database.name), "sample belongs to {owner}");
    let worker_makes =
        PgConnection::connect(&bed.database.worker_url).await?.execute("DROP TABLE penstock.sample").await;
    ensure!(worker_makes.is_err(), "a worker's login may not change the schema");
    Ok(())
}

async fn plain_postgresql_without_timescaledb_stores_all_the_same(bed: &mut Bed) -> Result<()> {
    let (good, said) = worker::command(&["migrate"], &bed.manifest(|text| text)?, &bed.secrets()).await?;
    ensure!(good && said.contains("\"edition\": \"PostgreSQL\""), "migrate: {said}");
    let mut worker = bed.worker().await?;
    let load = Load::mixed(bed, 800.0);
    worker.metric("messages flow", LONG, |m| m.get("ingest_committed_total") > 1000.0).await?;
    worker.kill();
    let worker = bed.start("one", &[])?;
    worker.ready().await?;
    load.finish(bed, &worker).await.map(drop)
}

async fn the_original_services_columns_are_there(bed: &mut Bed) -> Result<()> {
    bed.migrate().await?;
    for (view, expected) in [
        ("ts_measure", "tenant_id device_id point_id ts v_num v_bool v_text unit qual meta"),
        ("cmd_ack", "tenant_id device_id cmd_id ok ts_exec payload created_at updated_at"),
        ("ingest_errors", "id tenant_id topic payload reason ts"),
    ] {
        let columns: Vec<(String,)> = bed
            .rows(&format!(
                "SELECT column_name::text FROM information_schema.columns \
                 WHERE table_schema = 'penstock' AND table_name = '{view}' ORDER BY ordinal_position"
            ))
            .await?;
        let columns: Vec<String> = columns.into_iter().map(|(name,)| name).collect();
        ensure!(columns == expected.split(' ').collect::<Vec<_>>(), "{view} has {columns:?}");
    }
    Ok(())
}

async fn a_wrong_manifest_is_refused_with_its_path_and_what_would_be_right(bed: &mut Bed) -> Result<()> {
    for (from, to, path, remedy) in [
        ("receiveMaximum: 1000", "recieveMaximum: 1000", "spec.source.mqtt", "receiveMaximum"),
        ("keepAlive: 30s", "keepAlive: 30", "spec.source.mqtt.keepAlive", "30s"),
        (
            "traksense/+/+/+/telem",
            "traksense/#/telem",
            "spec.source.mqtt.subscriptions[0].filter",
            "last level",
        ),
        ("{site}/{device}", "{site}/device", "spec.source.mqtt.layout", "{device}"),
        ("maxAge: 30d", "maxAge: 400d", "spec.accept.maxAge", "365d"),
        (
            "mqtt://127.0.0.1",
            "mqtt://user:hunter2-secret@127.0.0.1",
            "spec.source.mqtt.url",
            "spec.source.mqtt.auth",
        ),
    ] {
        let example = std::fs::read_to_string(crate::stack::project().join("examples/worker.yaml"))?;
        ensure!(example.contains(from), "the example has {from}");
        let manifest = bed.folder.join("wrong.yaml");
        std::fs::write(&manifest, example.replace(from, to))?;
        let (good, said) = worker::command(&["check"], &manifest, &bed.secrets()).await?;
        ensure!(!good, "{to} is taken: {said}");
        ensure!(said.contains(path) && said.contains(remedy), "{to}: {said}");
        ensure!(!said.contains("hunter2"), "a secret is shown: {said}");
    }
    Ok(())
}

async fn check_says_what_broker_and_database_grant(bed: &mut Bed) -> Result<()> {
    let (manifest, secrets) = (bed.manifest(|text| text)?, bed.secrets());
    let check = || worker::command(&["check", "--connect"], &manifest, &secrets);
    let (good, said) = check().await?;
    ensure!(!good && said.contains("run penstock-worker migrate"), "a missing schema is said: {said}");
    bed.migrate().await?;
    let (good, said) = check().await?;
    ensure!(good, "check: {said}");
    for word in [
        "MQTT 5.0",
        "\"window\"",
        "\"qos\": 1",
        "sessionExpiry",
        "largestPacketFromBroker",
        "TimescaleDB Apache",
        "schemaVersion",
    ] {
        ensure!(said.contains(word), "{word} is missing: {said}");
    }
    let mut admin = PgConnection::connect(&bed.database.admin_url).await?;
    admin
        .execute(format!("ALTER DATABASE {} SET synchronous_commit = off", bed.database.name).as_str())
        .await?;
    ensure!(
        !crate::publisher::has_session(&bed.address, &format!("{}-check", bed.client_id())).await?,
        "it left a session"
    );
    Ok(())
}

async fn a_worker_waits_for_a_schema_and_says_so(bed: &mut Bed) -> Result<()> {
    bed.manifest(|text| text)?;
    let worker = bed.start("one", &[])?;
    // It says what to do.
    worker.not_ready("penstock-worker migrate").await?;
    ensure!(worker.is_live().await?, "it is live meanwhile");
    bed.migrate().await?;
    worker.ready().await
}

/// Counters and gauges that a worker without faults and without Sparkplug, or one that still runs, leaves at 0.
const MAY_BE_0: [&str; 12] = [
    "ingest_abandoned_total",
    "ingest_broker_dropped_messages",
    "ingest_in_flight",
    "ingest_queue_size",
    // Without spec.tenants.newSeriesPerMinute.
    "ingest_series_delayed_total",
    "ingest_series_waiting",
    "ingest_sparkplug_sequence_gaps_total",
    "ingest_sparkplug_rebirth_requests_total",
    // Without spec.tracing; tracing.rs counts them.
    "ingest_spans_dropped_total",
    "ingest_spans_exported_total",
    "ingest_trace_contexts_invalid_total",
    // At a takeover; the scenarios of rollouts look at it.
    "ingest_takeover_gap_seconds",
];

async fn every_metric_is_populated(bed: &mut Bed) -> Result<()> {
    populate_every_metric(bed).await.map(drop)
}

/// Has all that can be counted happen. Returns each family with what it counted.
pub async fn populate_every_metric(bed: &mut Bed) -> Result<Vec<(String, f64)>> {
    let proxy = Proxy::start(bed.address.clone()).await?;
    let through = format!("127.0.0.1:{}", proxy.port);
    let direct = bed.address.clone();
    let worker = bed
        .worker_with(|text| {
            text.replace(&direct, &through)
                .replace("maxPacketSize: 1Mi", "maxPacketSize: 8Ki")
                .replace("maxInHand: 64Mi", "maxInHand: 32Ki")
        })
        .await?;
    let mut missing = Vec::new();
    let topic = "traksense/t0/s1/dev-00000/telem";
    let sample = |n: u32| format!(r#"{{"schema":"v1","ts":"{}","points":[{{"name":"p0","v":{n}}}]}}"#, at(n));
    let future = jiff::Timestamp::from_microsecond(crate::fleet::now() + 60_000_000)?;
    let mut messages = vec![
        (topic, "x".repeat(9000), 1),
        (topic, r#"{"schema":"v1","ts":"1970-01-01T00:00:00Z","points":[{"name":"p","v":1}]}"#.into(), 1),
        (topic, format!(r#"{{"schema":"v1","ts":"{future}","points":[{{"name":"future","v":1}}]}}"#), 1),
        (topic, format!(r#"{{"schema":"v1","ts":"{}","points":[],"meta":{{"fw":"1"}}}}"#, at(1)), 1),
        (
            "traksense/t0/s1/dev-00000/ack",
            format!(r#"{{"schema":"v1","cmd_id":"c","ok":true,"ts_exec":"{}"}}"#, at(5)),
            1,
        ),
        (
            "traksense/t0/s1/dev-00000/ack",
            format!(r#"{{"schema":"v1","cmd_id":"c","ok":true,"ts_exec":"{}"}}"#, at(4)),
            1,
        ),
        (
            "traksense/t0/s1/dev-00000/event",
            format!(r#"{{"schema":"v1","event_type":"door","ts":"{}"}}"#, at(1)),
            1,
        ),
        (topic, sample(1), 0),
    ];
    messages.extend((0..50).map(|n| (topic, sample(n), 1)));
    let publish = async |messages: &[(&str, String, u8)]| {
        let outgoing = messages.iter().map(|(topic, payload, qos)| Outgoing {
            topic: (*topic).to_owned(),
            payload: payload.clone().into(),
            qos: *qos,
        });
        bed.publish(outgoing.collect()).await
    };
    publish(&messages).await?;
    worker.idle().await?;
    // Twice: what is there already goes through staging.
    publish(&messages).await?;
    worker.idle().await?;
    // A writer waits for a lock while the connection is cut, and the budget fills.
    let held = bed.hold_writers().await?;
    publish(&(60..90).map(|n| (topic, sample(n), 1)).collect::<Vec<_>>()).await?;
    publish(&(100..400).map(|n| (topic, sample(n), 0)).collect::<Vec<_>>()).await?;
    let stuck = worker
        .metric("QoS 0 is dropped and the database refuses", LONG, |m| {
            m.get("ingest_dropped_qos0_total") > 0.0 && m.get("ingest_db_breaker_state") > 0.0
        })
        .await?;
    ensure!(
        stuck.get("ingest_in_flight") > 0.0 && stuck.get("ingest_oldest_unacked_seconds") > 0.0,
        "deliveries wait"
    );
    ensure!(
        stuck.get("ingest_queue_fill_ratio") > 0.0 && stuck.get("ingest_mqtt_unacked") > 0.0,
        "the budget is in use"
    );
    proxy.set(Mode::Cut);
    worker.not_ready("broker_away").await?;
    held.release().await?;
    worker.metric("what was in hand is committed", LONG, |m| m.get("ingest_in_flight") == 0.0).await?;
    proxy.set(Mode::Pass);
    worker.ready().await?;
    let metrics = worker.idle().await?;
    let sessions_lost = ["ingest_mqtt_sessions_lost_total"];
    let now_zero = [
        "ingest_db_breaker_state",
        "ingest_oldest_unacked_seconds",
        "ingest_queue_fill_ratio",
        "ingest_mqtt_unacked",
    ];
    let mut families = Vec::new();
    for family in worker.families().await? {
        let value = metrics.get(&family) + metrics.sum(&family) + metrics.get(&format!("{family}_count"));
        let known = MAY_BE_0.contains(&family.as_str())
            || sessions_lost.contains(&family.as_str())
            || now_zero.contains(&family.as_str());
        if value == 0.0 && !known {
            missing.push(family.clone());
        }
        families.push((family, value));
    }
    ensure!(missing.is_empty(), "never counted: {missing:?}");
    require_identities(&metrics).context("after all of it")?;
    Ok(families)
}
