//! The database restarts, stays away, and loses connections at the worst moments.

use std::time::Duration;

use anyhow::{Result, ensure};
use penstock_worker::store::transaction;
use sqlx::{Connection, Executor, PgConnection};

use super::load::Load;
use crate::bed::Bed;
use crate::proxy::{Mode, Proxy, Trigger};
use crate::scenario;
use crate::suite::Scenario;
use crate::wait::until_async;
use crate::worker::Worker;

const LONG: Duration = Duration::from_secs(60);
/// The example's receive maximum.
const WINDOW: f64 = 1000.0;

pub fn all() -> Vec<Scenario> {
    vec![
        scenario!(a_database_restarted_under_load_costs_no_message[server]),
        scenario!(a_database_away_for_30_s_costs_no_message_and_bounded_memory[server]),
        scenario!(a_database_connection_cut_in_a_copy_or_a_commit_costs_no_message),
        scenario!(a_database_connection_frozen_in_a_copy_or_a_commit_costs_no_message),
        scenario!(an_aborted_transaction_whose_error_is_swallowed_never_commits_or_acknowledges),
    ]
}

async fn flows(worker: &Worker, more: f64) -> Result<()> {
    let before = worker.metrics().await?.get("ingest_committed_total");
    worker.metric("messages flow", LONG, |m| m.get("ingest_committed_total") > before + more).await.map(drop)
}

async fn a_database_restarted_under_load_costs_no_message(bed: &mut Bed) -> Result<()> {
    let worker = bed.worker().await?;
    let load = Load::mixed(bed, 500.0);
    for _ in 0..3 {
        flows(&worker, 300.0).await?;
        bed.server()?.stop()?;
        worker.not_ready("database").await?;
        bed.server()?.start_again().await?;
        worker.ready().await?;
    }
    let (_, metrics) = load.finish(bed, &worker).await?;
    ensure!(metrics.get("ingest_db_errors_total/retry") > 0.0, "failed attempts are counted");
    Ok(())
}

async fn a_database_away_for_30_s_costs_no_message_and_bounded_memory(bed: &mut Bed) -> Result<()> {
    let worker = bed.worker().await?;
    let load = Load::mixed(bed, 1000.0);
    flows(&worker, 1000.0).await?;
    bed.server()?.stop()?;
    worker.not_ready("database").await?;
    // Longer than the lease lasts: nobody can say that it passed to another, so this worker goes on.
    tokio::time::sleep(Duration::from_secs(30)).await;
    let metrics = worker.metrics().await?;
    let in_hand = metrics.get("ingest_in_flight");
    ensure!(in_hand > 0.0 && in_hand <= WINDOW, "{in_hand} deliveries are in hand, at most {WINDOW} may be");
    ensure!(metrics.get("ingest_db_breaker_state") > 0.0, "the breaker is open");
    worker.not_ready("database").await?;
    ensure!(worker.is_live().await?, "waiting for the database is no reason to restart");
    let peak = worker.peak_memory()?;
    ensure!(peak < 200 << 20, "{peak} bytes of memory");
    bed.server()?.start_again().await?;
    worker.ready().await?;
    flows(&worker, 5000.0).await?;
    load.finish(bed, &worker).await.map(drop)
}

async fn a_database_connection_cut_in_a_copy_or_a_commit_costs_no_message(bed: &mut Bed) -> Result<()> {
    interrupt(bed, Mode::Cut).await
}

async fn a_database_connection_frozen_in_a_copy_or_a_commit_costs_no_message(bed: &mut Bed) -> Result<()> {
    interrupt(bed, Mode::Freeze).await
}

async fn interrupt(bed: &mut Bed, mode: Mode) -> Result<()> {
    let proxy = Proxy::start(bed.database.address()?).await?;
    bed.reach_database_through(proxy.port)?;
    let worker = bed.worker().await?;
    let load = Load::mixed(bed, 500.0);
    for (number, trigger) in
        [Trigger::InCopy, Trigger::BeforeCommit, Trigger::AfterCommit].into_iter().enumerate()
    {
        flows(&worker, 300.0).await?;
        proxy.arm(trigger, mode);
        until_async(&format!("{trigger:?} is seen on the wire"), LONG, async || proxy.fired() == number + 1)
            .await?;
        worker.not_ready("database").await?;
        proxy.set(Mode::Pass);
        worker.ready().await?;
    }
    let (_, metrics) = load.finish(bed, &worker).await?;
    ensure!(
        metrics.get("ingest_outcomes_total/deduplicated") > 0.0,
        "the batch whose commit was not confirmed came again"
    );
    Ok(())
}

async fn an_aborted_transaction_whose_error_is_swallowed_never_commits_or_acknowledges(
    bed: &mut Bed,
) -> Result<()> {
    bed.migrate().await?;
    let aborted = async || -> Result<PgConnection> {
        let mut connection = PgConnection::connect(&bed.database.worker_url).await?;
        connection.execute("BEGIN").await?;
        connection.execute("INSERT INTO penstock.sample (ts, series_id, v_num) VALUES (now(), 1, 1)").await?;
        let swallowed = connection.execute("SELECT 1/0").await;
        ensure!(swallowed.is_err(), "the statement fails");
        Ok(connection)
    };
    // What the server says to a bare COMMIT is why the worker must not ask for one.
    ensure!(aborted().await?.execute("COMMIT").await.is_ok(), "PostgreSQL reports success");
    let committed = transaction::commit(&mut aborted().await?).await;
    ensure!(committed.is_err(), "the worker's commit says so");
    ensure!(bed.sql::<i64>("SELECT count(*) FROM penstock.sample").await? == 0, "nothing is stored");
    Ok(())
}
