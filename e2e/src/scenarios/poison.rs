//! Rows that the database refuses, and a database that refuses all rows.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::load::Load;
use crate::bed::{Bed, require_identities};
use crate::fleet::{Fleet, at};
use crate::publisher::{Outgoing, Progress};
use crate::scenario;
use crate::suite::Scenario;
use crate::worker::Worker;

const LONG: Duration = Duration::from_secs(60);
const TOPIC: &str = "traksense/t0/s1/dev-00000/telem";

pub fn all() -> Vec<Scenario> {
    vec![
        scenario!(a_poison_row_among_10_000_good_ones_is_one_dead_letter),
        scenario!(each_of_10_000_poison_rows_is_a_dead_letter),
        scenario!(a_poison_answer_among_good_ones_is_one_dead_letter),
        scenario!(an_answer_that_only_the_commit_refuses_is_one_dead_letter),
        scenario!(a_database_that_refuses_every_row_gives_none_up),
        scenario!(a_row_that_is_taken_once_its_dead_letter_is_written_is_stored),
        scenario!(a_full_disk_stops_consuming_and_gives_no_row_up[server]),
        scenario!(a_missing_right_stops_consuming_and_gives_no_row_up),
    ]
}

async fn a_poison_row_among_10_000_good_ones_is_one_dead_letter(bed: &mut Bed) -> Result<()> {
    let worker = bed.worker().await?;
    bed.execute("ALTER TABLE penstock.sample ADD CONSTRAINT good CHECK (v_num IS DISTINCT FROM 666)").await?;
    let poison = message(1200, [1, 2, 666, 4]);
    let mut messages: Vec<Outgoing> =
        (0..2500).filter(|n| *n != 1200).map(|n| message(n, [n + 1000, n + 1000, n + 1000, 7])).collect();
    messages.insert(1200, poison.clone());
    messages.push(poison);
    bed.publish(messages).await?;
    worker.metric("all is committed", LONG, |m| m.get("ingest_committed_total") >= 2501.0).await?;
    let letters: Vec<(String, Option<i32>, String)> =
        bed.rows("SELECT reason, part, detail FROM penstock.dead_letter").await?;
    let [(reason, part, detail)] = &letters[..] else {
        anyhow::bail!("not one dead letter for two deliveries but {letters:?}")
    };
    ensure!(reason == "database" && *part == Some(2), "the dead letter names the part: {letters:?}");
    ensure!(detail.contains("23514"), "the detail has the SQLSTATE: {detail}");
    let stored: i64 = bed.sql("SELECT count(*) FROM penstock.sample").await?;
    ensure!(stored == 9999, "{stored} rows are stored");
    // It would keep the whole database from forgetting old transactions.
    let staging: i64 = bed.sql("SELECT count(*) FROM pg_class WHERE relname = 'penstock_stage'").await?;
    ensure!(staging == 0, "a staging table outlives its batch");
    require_identities(&worker.idle().await?)
}

async fn each_of_10_000_poison_rows_is_a_dead_letter(bed: &mut Bed) -> Result<()> {
    let worker = bed.worker().await?;
    // A good one first: without a chunk each try would make one, and undo it.
    bed.publish(vec![message(2500, [1, 2, 3, 4])]).await?;
    worker.metric("it is committed", LONG, |m| m.get("ingest_committed_total") >= 1.0).await?;
    bed.execute("ALTER TABLE penstock.sample ADD CONSTRAINT good CHECK (v_num IS NULL) NOT VALID").await?;
    bed.publish((0..2500).map(|n| message(n, [n, 2, 3, 4])).collect()).await?;
    worker.metric("all is committed", LONG, |m| m.get("ingest_committed_total") >= 2501.0).await?;
    let letters: i64 = bed.sql("SELECT count(*) FROM penstock.dead_letter WHERE reason = 'database'").await?;
    ensure!(letters == 10_000, "{letters} dead letters");
    require_identities(&worker.idle().await?)
}

fn message(n: u32, values: [u32; 4]) -> Outgoing {
    let points: Vec<String> =
        values.iter().enumerate().map(|(p, v)| format!(r#"{{"name":"p{p}","v":{v}}}"#)).collect();
    let payload = format!(r#"{{"schema":"v1","ts":"{}","points":[{}]}}"#, at(n), points.join(","));
    Outgoing { topic: TOPIC.into(), payload: payload.into(), qos: 1 }
}

async fn a_poison_answer_among_good_ones_is_one_dead_letter(bed: &mut Bed) -> Result<()> {
    one_answer_of_200_is_refused(
        bed,
        "ALTER TABLE penstock.command_ack ADD CONSTRAINT good CHECK (cmd_id <> 'c77')",
    )
    .await
}

async fn an_answer_that_only_the_commit_refuses_is_one_dead_letter(bed: &mut Bed) -> Result<()> {
    one_answer_of_200_is_refused(
        bed,
        "CREATE FUNCTION good() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN RAISE EXCEPTION 'not good' USING ERRCODE = '23514'; END $$; \
         CREATE CONSTRAINT TRIGGER good AFTER INSERT ON penstock.command_ack DEFERRABLE INITIALLY DEFERRED \
         FOR EACH ROW WHEN (NEW.cmd_id = 'c77') EXECUTE FUNCTION good()",
    )
    .await
}

/// With what makes the database refuse the answer to c77.
async fn one_answer_of_200_is_refused(bed: &mut Bed, refusing: &str) -> Result<()> {
    let worker = bed.worker().await?;
    bed.execute(refusing).await?;
    bed.publish((0..200).map(answer).collect()).await?;
    worker.metric("all is committed", LONG, |m| m.get("ingest_committed_total") >= 200.0).await?;
    ensure!(
        bed.sql::<i64>("SELECT count(*) FROM penstock.command_ack").await? == 199,
        "the good answers are stored"
    );
    let letter: (String, String) =
        bed.row("SELECT reason, convert_from(payload, 'UTF8') FROM penstock.dead_letter JOIN penstock.dead_payload USING (payload_digest)").await?;
    ensure!(letter.0 == "database" && letter.1.contains("c77"), "the dead letter is the poison: {letter:?}");
    require_identities(&worker.idle().await?)
}

fn answer(n: u32) -> Outgoing {
    Outgoing {
        topic: "traksense/t0/s1/dev-00000/ack".into(),
        payload: format!(r#"{{"schema":"v1","cmd_id":"c{n}","ok":true}}"#).into(),
        qos: 1,
    }
}

fn sample(n: u32) -> Outgoing {
    Outgoing {
        topic: TOPIC.into(),
        payload: format!(r#"{{"schema":"v1","ts":"{}","points":[{{"name":"p","v":{n}}}]}}"#, at(n)).into(),
        qos: 1,
    }
}

/// As one does that has run out of transaction numbers: it says what it says of a row that is too large.
async fn a_database_that_refuses_every_row_gives_none_up(bed: &mut Bed) -> Result<()> {
    let worker = bed.worker().await?;
    let tables = ["sample", "command_ack", "dead_letter"];
    refuse(bed, "", &tables).await?;
    bed.publish((0..20).map(sample).chain((0..20).map(answer)).collect()).await?;
    worker.not_ready("database_refuses").await?;
    ensure!(worker.metrics().await?.get("ingest_committed_total") == 0.0, "something was committed");
    for table in tables {
        bed.execute(&format!("DROP TRIGGER refuse ON penstock.{table}")).await?;
    }
    require_20_of_each_and_no_letter(bed, &worker).await
}

/// The moment in which such a database recovers, at its worst: between a row and its dead letter.
async fn a_row_that_is_taken_once_its_dead_letter_is_written_is_stored(bed: &mut Bed) -> Result<()> {
    let worker = bed.worker().await?;
    // A sequence is seen by all at once, and stays when the transaction is undone.
    bed.execute(
        "CREATE SEQUENCE recovered; CREATE FUNCTION recover() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS \
         $$ BEGIN PERFORM nextval('recovered'); RETURN NEW; END $$; \
         CREATE TRIGGER recover BEFORE INSERT ON penstock.dead_letter FOR EACH ROW EXECUTE FUNCTION recover()",
    )
    .await?;
    refuse(bed, "IF (SELECT is_called FROM recovered) THEN RETURN NEW; END IF;", &["sample", "command_ack"])
        .await?;
    let all: [(Vec<Outgoing>, f64); 2] =
        [((0..20).map(sample).collect(), 20.0), ((0..20).map(answer).collect(), 40.0)];
    for (messages, committed) in all {
        bed.execute("ALTER SEQUENCE recovered RESTART").await?;
        bed.publish(messages).await?;
        worker.metric("all is committed", LONG, |m| m.get("ingest_committed_total") >= committed).await?;
        ensure!(bed.sql::<bool>("SELECT is_called FROM recovered").await?, "no dead letter was tried");
    }
    require_20_of_each_and_no_letter(bed, &worker).await
}

async fn refuse(bed: &Bed, unless: &str, tables: &[&str]) -> Result<()> {
    bed.execute(&format!(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS \
         $$ BEGIN {unless} RAISE EXCEPTION 'database is not accepting commands' USING ERRCODE = '54000'; END $$"
    ))
    .await?;
    for table in tables {
        bed.execute(&format!(
            "CREATE TRIGGER refuse BEFORE INSERT ON penstock.{table} FOR EACH ROW EXECUTE FUNCTION refuse()"
        ))
        .await?;
    }
    Ok(())
}

async fn require_20_of_each_and_no_letter(bed: &Bed, worker: &Worker) -> Result<()> {
    worker.metric("all is committed", LONG, |m| m.get("ingest_committed_total") >= 40.0).await?;
    let stored: (i64, i64, i64) = bed
        .row("SELECT (SELECT count(*) FROM penstock.sample), (SELECT count(*) FROM penstock.command_ack), (SELECT count(*) FROM penstock.dead_letter)")
        .await?;
    ensure!(stored == (20, 20, 0), "samples, answers and dead letters are {stored:?}");
    require_identities(&worker.idle().await?)
}

async fn a_full_disk_stops_consuming_and_gives_no_row_up(bed: &mut Bed) -> Result<()> {
    let worker = bed.worker().await?;
    let disk = bed.server()?.small_disk(3 << 20)?;
    bed.execute(&format!("CREATE TABLESPACE small LOCATION '{}'", disk.inside)).await?;
    bed.execute(
        "GRANT CREATE ON TABLESPACE small TO public; SELECT attach_tablespace('small', 'penstock.sample')",
    )
    .await?;
    let load = Load::mixed(bed, 2000.0);
    worker.metric("the disk is full", LONG, |m| m.get("ingest_db_errors_total/stop") > 0.0).await?;
    worker.not_ready("stop: 53100").await?;
    let full = worker.metric("the window is full", LONG, |m| m.get("ingest_mqtt_unacked") >= 1000.0).await?;
    ensure!(full.get("ingest_dead_letters_total/database") == 0.0, "no row is given up for it");
    disk.resize(512 << 20)?;
    worker.ready().await?;
    let (_, metrics) = load.finish(bed, &worker).await?;
    ensure!(metrics.get("ingest_dead_letters_total/database") == 0.0, "no row was given up for it");
    Ok(())
}

async fn a_missing_right_stops_consuming_and_gives_no_row_up(bed: &mut Bed) -> Result<()> {
    let worker = bed.worker().await?;
    bed.execute("REVOKE INSERT ON penstock.sample FROM penstock_worker").await?;
    let fleet = Fleet::steady(&bed.address, 500.0, 1500);
    let publishing = tokio::spawn({
        let fleet = fleet.clone();
        async move { fleet.run(Arc::new(Progress::default())).await }
    });
    worker.not_ready("database_refuses").await?;
    bed.execute("GRANT INSERT ON penstock.sample TO penstock_worker").await?;
    worker.ready().await?;
    let ledger = publishing.await??;
    require_identities(&worker.idle().await?)?;
    crate::compare::compare(&bed.database.admin_url, &ledger, fleet.points).await?.require_exact()
}
