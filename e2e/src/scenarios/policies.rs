//! A store's policies: what is removed when, what is cut, and what an edition cannot do.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use penstock_worker::store::policy::plan::{Action, Refresh};
use penstock_worker::store::policy::rollup::{self, Width};
use serde_json::Value;
use sqlx::{Connection, Executor, PgConnection};

use super::load::Load;
use crate::bed::{Bed, require_identities};
use crate::fleet::{Fleet, at};
use crate::publisher::Outgoing;
use crate::scenario;
use crate::suite::Scenario;
use crate::wait::until_async;
use crate::worker;

const LONG: Duration = Duration::from_secs(60);
const HOUR: i64 = 3_600_000_000;

pub fn all() -> Vec<Scenario> {
    vec![
        scenario!(what_is_older_than_its_retention_goes_and_the_rest_stays),
        scenario!(plain_postgresql_forgets_what_is_older_than_its_retention[server, plain]),
        scenario!(dead_letters_over_their_size_are_cut_oldest_first),
        scenario!(maintaining_by_three_at_once_under_load_is_safe),
        scenario!(what_this_edition_cannot_do_is_reported_and_not_failed),
        scenario!(rollups_of_rollups_are_the_same_as_those_of_samples),
        scenario!(a_filled_older_schema_is_brought_up_to_date_under_an_old_worker),
    ]
}

/// A manifest with these policies in place of the example's.
fn policies(bed: &Bed, retention: &str, max_age: &str, letters: &str) -> Result<PathBuf> {
    bed.manifest(|text| {
        text.replace("  retention: 365d\n", &format!("  retention: {retention}\n"))
            .replace("  rollups: [1m, 5m, 1h]\n", "")
            .replace("  columnstore: {after: 7d}\n", "")
            .replace("{retention: 30d, maxSize: 10Gi}", letters)
            .replace("maxAge: 30d", &format!("maxAge: {max_age}"))
    })
}

/// What `maintain` says.
async fn maintain(bed: &Bed) -> Result<Value> {
    let (good, said) = worker::command(&["maintain"], &bed.folder.join("plant.yaml"), &bed.secrets()).await?;
    ensure!(good, "maintain: {said}");
    serde_json::from_str(&said).context(said)
}

/// A message of each kind, so many hours old; a sample, an event, an answer, metadata and a dead letter.
fn of_age(hours: i64) -> Result<Vec<Outgoing>> {
    let ts = jiff::Timestamp::from_microsecond(crate::fleet::now() - hours * HOUR)?;
    let message = |kind: &str, payload: String| Outgoing {
        topic: format!("traksense/t0/s1/dev-00000/{kind}"),
        payload: payload.into(),
        qos: 1,
    };
    Ok(vec![
        message(
            "telem",
            format!(
                r#"{{"schema":"v1","ts":"{ts}","points":[{{"name":"p0","v":{hours}}}],"meta":{{"h":{hours}}}}}"#
            ),
        ),
        message(
            "event",
            format!(r#"{{"schema":"v1","event_id":"{hours}","event_type":"door","ts":"{ts}"}}"#),
        ),
        message("ack", format!(r#"{{"schema":"v1","cmd_id":"{hours}","ok":true,"ts_exec":"{ts}"}}"#)),
        message("telem", format!(r#"{{"schema":"v1","ts":"then","age":{hours}}}"#)),
    ])
}

/// How many samples, events, metadata, answers and letters there are.
async fn counts(bed: &Bed) -> Result<Vec<i64>> {
    let mut counts = Vec::new();
    for table in ["sample", "event", "message", "command_ack", "dead_letter", "dead_payload"] {
        counts.push(bed.sql(&format!("SELECT count(*) FROM penstock.{table}")).await?);
    }
    Ok(counts)
}

async fn filled(bed: &mut Bed) -> Result<()> {
    let worker = bed.worker().await?;
    for hours in [0, 30, 100, 400] {
        bed.publish(of_age(hours)?).await?;
    }
    let metrics = worker.metric("all are stored", LONG, |m| m.get("ingest_committed_total") == 16.0).await?;
    require_identities(&metrics)?;
    // Received long ago, too.
    bed.execute(
        "UPDATE penstock.dead_letter SET received_at = now() - (convert_from(p.payload, 'UTF8')::json->>'age')::int * interval '1 hour' \
           FROM penstock.dead_payload p WHERE p.payload_digest = dead_letter.payload_digest; \
         UPDATE penstock.command_ack SET updated_at = executed_at",
    )
    .await?;
    ensure!(counts(bed).await? == [4; 6], "all are there: {:?}", counts(bed).await?);
    worker.stop(LONG).await
}

async fn forgets(bed: &mut Bed) -> Result<Value> {
    filled(bed).await?;
    // Metadata without a time, as JE02's INFO is stored.
    bed.execute(
        "INSERT INTO penstock.message (device_id, ts, digest, document) SELECT device_id, 'epoch', '0', '{}' FROM penstock.device",
    )
    .await?;
    policies(bed, "400d", "30d", "{retention: 400d, maxSize: null}")?;
    maintain(bed).await?;
    ensure!(counts(bed).await? == [4, 4, 5, 4, 4, 4], "nothing is that old");
    policies(bed, "2d", "1d", "{retention: 10d, maxSize: null}")?;
    let said = maintain(bed).await?;
    let left = counts(bed).await?;
    ensure!(left == [2, 2, 3, 2, 3, 3], "left are {left:?}: {said}");
    let values: Vec<(f64,)> = bed.rows("SELECT v_num FROM penstock.sample ORDER BY 1").await?;
    ensure!(values == [(0.0,), (30.0,)], "the young ones stay: {values:?}");
    let again = maintain(bed).await?;
    let removed = again["removed"].as_object().context("what was removed")?;
    ensure!(removed.values().all(|count| *count == 0), "again removes nothing: {again}");
    ensure!(
        said["removed"]["events"] == 2 && said["removed"]["deadLetters"] == 1,
        "it says what it did: {said}"
    );
    Ok(said)
}

async fn what_is_older_than_its_retention_goes_and_the_rest_stays(bed: &mut Bed) -> Result<()> {
    let said = forgets(bed).await?;
    ensure!(said["removed"]["chunks"] == 2, "TimescaleDB drops chunks: {said}");
    Ok(())
}

async fn plain_postgresql_forgets_what_is_older_than_its_retention(bed: &mut Bed) -> Result<()> {
    let said = forgets(bed).await?;
    ensure!(said["removed"]["samples"] == 2 && said["removed"]["chunks"] == 0, "rows are deleted: {said}");
    // Many rows of many series, in more than one transaction each.
    bed.execute(
        "INSERT INTO penstock.series (device_id, point) SELECT 1, 's' || n FROM generate_series(1, 2500) n; \
         INSERT INTO penstock.sample (ts, series_id, v_num) SELECT now() - h * interval '1 hour', series_id, 1 \
           FROM penstock.series, generate_series(1, 96, 8) h ON CONFLICT DO NOTHING",
    )
    .await?;
    let young: i64 =
        bed.sql("SELECT count(*) FROM penstock.sample WHERE ts > now() - interval '2 days'").await?;
    let said = maintain(bed).await?;
    let left: i64 = bed.sql("SELECT count(*) FROM penstock.sample").await?;
    ensure!(left == young && young > 10_000, "{left} are left of {young} young ones: {said}");
    Ok(())
}

async fn dead_letters_over_their_size_are_cut_oldest_first(bed: &mut Bed) -> Result<()> {
    let worker = bed.worker().await?;
    let payload = |n: u32| format!("{n:03}{}", "x".repeat(9_997));
    let letters = (0..100).map(|n| Outgoing {
        topic: "traksense/t0/s1/dev-00000/telem".to_owned(),
        payload: payload(n).into(),
        qos: 1,
    });
    bed.publish(letters.collect()).await?;
    worker
        .metric("all are dead letters", LONG, |m| m.get("ingest_dead_letters_total/parse_error") == 100.0)
        .await?;
    bed.execute(
        "UPDATE penstock.dead_payload SET received_at = now() + substr(convert_from(payload, 'UTF8'), 1, 3)::int * interval '1 second'",
    )
    .await?;
    policies(bed, "365d", "30d", "{retention: null, maxSize: 500k}")?;
    let said = maintain(bed).await?;
    let (size, cut, newest_cut): (i64, i64, String) = bed
        .row(
            "SELECT sum(octet_length(payload)), count(*) FILTER (WHERE truncated), \
             max(substr(convert_from(payload, 'UTF8'), 1, 3)) FILTER (WHERE truncated) FROM penstock.dead_payload",
        )
        .await?;
    // 51 of them give up 9,936 bytes each.
    ensure!(
        size <= 500_000 && cut == 51 && newest_cut == "050",
        "{cut} are cut to {size} bytes, up to {newest_cut}"
    );
    ensure!(said["removed"]["payloadsCut"] == 51 && said["removed"]["bytesCut"] == 51 * 9_936, "{said}");
    let whole: i64 = bed
        .sql("SELECT count(*) FROM penstock.dead_payload WHERE NOT truncated AND octet_length(payload) = payload_bytes")
        .await?;
    ensure!(whole == 49, "{whole} are whole");
    let again = maintain(bed).await?;
    ensure!(again["removed"]["payloadsCut"] == 0, "again cuts nothing: {again}");
    Ok(())
}

async fn maintaining_by_three_at_once_under_load_is_safe(bed: &mut Bed) -> Result<()> {
    // The worker keeps the example's manifest, which takes older samples than these policies allow.
    let manifest = bed.folder.join("strict.yaml");
    std::fs::rename(policies(bed, "10d", "5d", "{retention: 10d, maxSize: 1Gi}")?, &manifest)?;
    bed.manifest(|text| text)?;
    let worker = bed.worker().await?;
    let load = Load::start(Fleet { mixed: true, ..Fleet::steady(&bed.address, 1500.0, 1_000_000) });
    let rounds = async {
        for _ in 0..3 {
            let secrets = bed.secrets();
            let run = |name| worker::command(name, &manifest, &secrets);
            let (a, b, c) = tokio::try_join!(run(&["maintain"]), run(&["maintain"]), run(&["migrate"]))?;
            for (good, said) in [a, b, c] {
                ensure!(good, "{said}");
            }
        }
        anyhow::Ok(())
    };
    // Chunks are made and dropped meanwhile: each day is one. 23 and 400 share no divisor.
    let mut old = 0;
    let old_days = async {
        let mut pace = tokio::time::interval(Duration::from_millis(10));
        while old < 400 {
            pace.tick().await;
            bed.publish(of_age(300 + old * 23 % 400)?).await?;
            old += 1;
        }
        std::future::pending::<Result<()>>().await
    };
    tokio::select! {
        ended = rounds => ended?,
        failed = old_days => failed?,
    }
    const OF_OLD_DAYS: &str = "SELECT count(*) FROM penstock.command_ack WHERE cmd_id ~ '^[0-9]+$'";
    until_async("all are stored", LONG, || async {
        bed.sql::<i64>(OF_OLD_DAYS).await.is_ok_and(|n| n >= old)
    })
    .await?;
    let (good, said) = worker::command(&["maintain"], &manifest, &bed.secrets()).await?;
    ensure!(good, "{said}");
    ensure!(
        bed.sql::<i64>("SELECT count(*) FROM penstock.sample WHERE ts < now() - interval '10 days'").await?
            == 0,
        "the old samples are gone"
    );
    // What was removed is not the fleet's.
    bed.execute(
        "DELETE FROM penstock.command_ack WHERE cmd_id ~ '^[0-9]+$'; \
         DELETE FROM penstock.dead_letter WHERE payload_digest IN \
           (SELECT payload_digest FROM penstock.dead_payload WHERE convert_from(payload, 'UTF8') LIKE '%then%')",
    )
    .await?;
    load.finish(bed, &worker).await.map(drop)
}

async fn what_this_edition_cannot_do_is_reported_and_not_failed(bed: &mut Bed) -> Result<()> {
    let (manifest, secrets) = (bed.manifest(|text| text)?, bed.secrets());
    let (good, said) = worker::command(&["migrate"], &manifest, &secrets).await?;
    let report: Value = serde_json::from_str(&said).context(said)?;
    let unsupported = report["unsupported"].to_string();
    ensure!(
        good && unsupported.contains("spec.rollups: ") && unsupported.contains("spec.columnstore: "),
        "{report}"
    );
    let (good, said) = worker::command(&["check", "--connect"], &manifest, &secrets).await?;
    ensure!(good && said.contains("spec.rollups: TimescaleDB Apache cannot do it"), "check: {said}");
    let (good, said) = worker::command(&["check"], &manifest, &secrets).await?;
    ensure!(good && said.contains("spec.columnstore.after"), "check hints at late samples: {said}");

    // What the community edition would be told is understood here, and refused for its licence alone.
    let refresh = Refresh { start: Some(86_400), end: 60 };
    let mut owner = PgConnection::connect(&bed.database.owner_url).await?;
    for action in [
        Action::DropAfter(86_400),
        Action::KeepForEver,
        Action::MakeColumnstore,
        Action::CompressAfter(86_400),
        Action::StopCompressing,
        Action::MakeRollup { width: Width(60), from: None },
    ] {
        for statement in action.statements() {
            let answer = owner.execute(statement.as_str()).await;
            let error = answer.as_ref().err().and_then(sqlx::Error::as_database_error);
            let code = error.and_then(sqlx::error::DatabaseError::code).unwrap_or_default();
            ensure!(code == "0A000", "{statement}: {answer:?}");
            if matches!(action, Action::MakeRollup { .. }) {
                break;
            }
        }
    }
    // Of two retentions before, what the shorter one removed is gone.
    for age in [90, 30, 60] {
        for statement in Action::Remember(age * 86_400).statements() {
            owner.execute(statement.as_str()).await?;
        }
    }
    let days: i64 = bed.sql("SELECT extract(day FROM now() - at)::int8 FROM penstock.horizon").await?;
    ensure!(days == 30, "samples are whole for {days} days");
    // The policy of a rollup needs one; its functions and their arguments are known.
    owner.execute("CREATE VIEW penstock.rollup_1m AS SELECT 1").await?;
    for statement in Action::Refresh(Width(60), refresh).statements() {
        let answer = owner.execute(statement.as_str()).await;
        let error = answer.as_ref().err().and_then(sqlx::Error::as_database_error);
        let code = error.and_then(sqlx::error::DatabaseError::code).unwrap_or_default();
        ensure!(code == "0A000", "{statement}: {answer:?}");
    }
    Ok(())
}

/// The queries of rollups, run as plain ones: what makes them continuous is the community edition's.
async fn rollups_of_rollups_are_the_same_as_those_of_samples(bed: &mut Bed) -> Result<()> {
    bed.migrate().await?;
    bed.execute(
        "INSERT INTO penstock.tenant (name) VALUES ('t0'); \
         INSERT INTO penstock.tenant_role VALUES (current_user, NULL); \
         INSERT INTO penstock.device (tenant_id, site, name) VALUES (1, 's', 'd'); \
         INSERT INTO penstock.series (device_id, point) SELECT 1, 's' || n FROM generate_series(1, 5) n; \
         SELECT setseed(0.5); \
         INSERT INTO penstock.sample (ts, series_id, v_num, v_bool, v_text) \
           SELECT '2026-01-01T00:00:00Z'::timestamptz + random() * interval '5 hours', s, \
             CASE WHEN s < 4 AND random() < 0.9 THEN floor(random() * 1000) / 8 END, \
             CASE WHEN s >= 3 AND random() < 0.5 THEN random() < 0.5 END, CASE WHEN s = 5 THEN 'x' END \
           FROM generate_series(1, 5) s, generate_series(1, 4000) ON CONFLICT DO NOTHING; \
         INSERT INTO penstock.sample (ts, series_id, v_num) \
           SELECT '2026-01-01T06:00:00Z'::timestamptz + n * interval '1 minute', 1, 1.7976931348623157e308 \
           FROM generate_series(1, 10) n",
    )
    .await?;
    let (minute, five, hour) = (Width(60), Width(300), Width(3600));
    let mut from = None;
    for width in [minute, five, hour] {
        let query = rollup::query(width, from.as_deref());
        let name = format!("penstock.{}", rollup::name(width));
        bed.execute(&format!("CREATE TABLE {name} AS {query}; {}", rollup::views(width).join(";"))).await?;
        from = Some(name);
    }
    for width in [five, hour] {
        let (direct, nested) =
            (rollup::query(width, None), format!("SELECT * FROM penstock.{}", rollup::name(width)));
        // Sums of eighths are exact in any order.
        let unequal: i64 = bed
            .sql(&format!(
                "SELECT (SELECT count(*) FROM ({direct} EXCEPT {nested}) a) + (SELECT count(*) FROM ({nested} EXCEPT {direct}) b)"
            ))
            .await?;
        let rows: i64 = bed.sql(&format!("SELECT count(*) FROM ({nested}) n")).await?;
        ensure!(unequal == 0 && rows > 20, "{width}: {unequal} of {rows} buckets differ");
    }
    let unequal: i64 = bed
        .sql(
            "SELECT count(*) FROM (SELECT point, time_bucket('1 hour', ts) AS ts, avg(v_num) AS v_avg, min(v_num) AS v_min \
               FROM penstock.readings WHERE v_num IS NULL OR v_num < 1e290 GROUP BY 1, 2) r FULL JOIN penstock.readings_1h h USING (point, ts) \
             WHERE (r.v_avg, r.v_min) IS DISTINCT FROM (h.v_avg, h.v_min) AND abs(r.v_avg - h.v_avg) > 1e-9",
        )
        .await?;
    ensure!(unequal == 0, "{unequal} averages differ from those of the readings");
    Ok(())
}

/// The first version of the schema, of a database with this one.
const BACK_TO_1: &str = "DROP INDEX penstock.dead_letter_payload_digest_idx; \
    ALTER TABLE penstock.shard_lease DROP COLUMN more_filters; \
    DROP VIEW penstock.sparkplug_nodes; DROP TABLE penstock.sparkplug_birth, penstock.sparkplug_state; DROP TABLE penstock.horizon; \
    DELETE FROM penstock._sqlx_migrations WHERE version > 1";

/// What a worker of the first version does in a transaction, with its login; `$n` is a number.
const WORKER_OF_1: &str = "BEGIN; \
    INSERT INTO penstock.shard_lease (shard) VALUES ('old/old/0') ON CONFLICT DO NOTHING; \
    UPDATE penstock.shard_lease SET instance = 'old', expires_at = clock_timestamp() + interval '15 s', \
      filters = ARRAY['a/#'], plan_generation = $n, session_existed = true WHERE shard = 'old/old/0'; \
    INSERT INTO penstock.sample (ts, series_id, quality, v_num, v_bool, v_text) \
      SELECT now(), min(series_id), 0, $n, NULL, NULL FROM penstock.series ON CONFLICT (series_id, ts) DO NOTHING; \
    INSERT INTO penstock.dead_payload (payload_digest, payload, payload_bytes) \
      VALUES (decode(md5('$n'), 'hex'), 'x', 1) ON CONFLICT DO NOTHING; \
    INSERT INTO penstock.dead_letter (digest, pipeline, tenant, topic, payload_digest, reason, part, detail) \
      VALUES (decode(md5('$n'), 'hex'), 'old/old', 'old', 't', decode(md5('$n'), 'hex'), 'parse_error', NULL, 'd'); \
    COMMIT";

const LETTERS_OF_1: &str = "SELECT count(*) FROM penstock.dead_letter WHERE pipeline = 'old/old'";

async fn a_filled_older_schema_is_brought_up_to_date_under_an_old_worker(bed: &mut Bed) -> Result<()> {
    filled(bed).await?;
    bed.execute(BACK_TO_1).await?;
    bed.execute(&format!(
        "INSERT INTO penstock.sample (ts, series_id, v_num) \
         SELECT '{}'::timestamptz - n * interval '1 minute', series_id, n FROM penstock.series, generate_series(1, 5000) n",
        at(0)
    ))
    .await?;
    let rows =
        "SELECT md5(string_agg(s::text, ',' ORDER BY series_id, ts)) FROM penstock.sample s WHERE ts < $1";
    let rows = rows.replace("$1", &format!("'{}'", at(0)));
    let before: String = bed.sql(&rows).await?;
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    // A new worker refuses the old schema; the old one goes on storing while it is brought up to date.
    let worker = bed.start("two", &[])?;
    worker.not_ready("run penstock-worker migrate").await?;
    let old = async {
        let mut connection = PgConnection::connect(&bed.database.worker_url).await?;
        let mut committed = 0i64;
        while !*stopped.borrow_and_update() {
            sqlx::raw_sql(&WORKER_OF_1.replace("$n", &committed.to_string()))
                .execute(&mut connection)
                .await?;
            committed += 1;
        }
        anyhow::Ok(committed)
    };
    let update = async {
        let migrating: i64 = bed.sql(LETTERS_OF_1).await?;
        bed.migrate().await?;
        let migrated: i64 = bed.sql(LETTERS_OF_1).await?;
        ensure!(migrated > migrating, "the old worker stored meanwhile: {migrating}, {migrated}");
        worker.ready().await?;
        let goes_on = async || bed.sql::<i64>(LETTERS_OF_1).await.is_ok_and(|count| count > migrated + 10);
        until_async("the old worker goes on", LONG, goes_on).await?;
        stop.send_replace(true);
        anyhow::Ok(())
    };
    let (committed, ()) = tokio::try_join!(old, update)?;
    ensure!(bed.sql::<i64>(LETTERS_OF_1).await? == committed, "all that the old worker committed is there");
    ensure!(bed.sql::<String>(&rows).await? == before, "the rows are what they were");
    bed.execute("TRUNCATE penstock.sample, penstock.event, penstock.command_ack, penstock.message, penstock.dead_letter, penstock.dead_payload").await?;
    let load = Load::start(Fleet { mixed: true, ..Fleet::steady(&bed.address, 1000.0, 1_000_000) });
    worker.metric("it stores", LONG, |m| m.get("ingest_committed_total") > 2000.0).await?;
    load.finish(bed, &worker).await.map(drop)
}
