//! The broker restarts, forgets, refuses, and is small.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::load::Load;
use crate::bed::{Bed, require_identities};
use crate::fleet::{Fleet, at};
use crate::proxy::{Mode, Proxy};
use crate::publisher::{Outgoing, Progress};
use crate::scenario;
use crate::stack::mosquitto::Setup;
use crate::suite::Scenario;

const LONG: Duration = Duration::from_secs(40);

pub fn all() -> Vec<Scenario> {
    let refusing = Setup { refused: Some("secret/+/+/+/ack"), ..Setup::default() };
    vec![
        scenario!(a_broker_restarted_with_its_persistence_costs_no_message[broker]),
        scenario!(a_session_that_the_broker_lost_is_counted_and_what_was_in_hand_is_stored[broker]),
        scenario!(acknowledgements_of_a_lost_session_take_nothing_from_the_next_one[broker]),
        scenario!(a_broker_connection_that_is_cut_or_frozen_costs_no_message),
        scenario!(acknowledgements_of_an_old_connection_are_dropped),
        scenario!(a_window_of_20_with_mqtt_3_1_1_is_enough_for_exactness),
        scenario!(a_backlog_that_keeps_the_window_full_leaves_the_worker_ready),
        scenario!(qos_0_publishers_are_counted_as_such),
        scenario!(a_message_larger_than_the_limit_is_a_dead_letter_and_blocks_nothing),
        Scenario {
            setup: refusing,
            ..scenario!(a_filter_that_the_broker_refuses_makes_the_worker_not_ready[broker])
        },
    ]
}

async fn a_broker_restarted_with_its_persistence_costs_no_message(bed: &mut Bed) -> Result<()> {
    let worker = bed.worker().await?;
    let load = Load::mixed(bed, 500.0);
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(700)).await;
        bed.broker()?.stop()?;
        worker.not_ready("broker_away").await?;
        bed.broker()?.start_again()?;
        worker.ready().await?;
    }
    let (_, metrics) = load.finish(bed, &worker).await?;
    ensure!(metrics.get("ingest_mqtt_sessions_lost_total") == 0.0, "the broker kept its sessions");
    Ok(())
}

async fn a_session_that_the_broker_lost_is_counted_and_what_was_in_hand_is_stored(
    bed: &mut Bed,
) -> Result<()> {
    let worker = bed.worker().await?;
    // Writers wait for a lock, so that messages are in hand when the broker forgets them.
    let held = bed.hold_writers().await?;
    bed.publish(numbered(0..200)).await?;
    worker.metric("all is in hand", LONG, |m| m.get("ingest_received_total") >= 200.0).await?;
    bed.broker()?.stop()?;
    bed.broker()?.wipe()?;
    bed.broker()?.start_again()?;
    worker.metric("the loss is counted", LONG, |m| m.get("ingest_mqtt_sessions_lost_total") > 0.0).await?;
    held.release().await?;
    let metrics =
        worker.metric("what was in hand is stored", LONG, |m| m.get("ingest_points_total") >= 200.0).await?;
    ensure!(bed.sql::<i64>("SELECT count(*) FROM penstock.sample").await? == 200, "stored rows");
    ensure!(metrics.get("ingest_stale_acks_dropped_total") > 0.0, "old acknowledgements were dropped");
    require_identities(&worker.idle().await?)
}

/// Messages of one device, each with a time of its own.
fn numbered(numbers: std::ops::Range<u32>) -> Vec<Outgoing> {
    let message = |n| Outgoing {
        topic: "traksense/t0/s1/dev-00001/telem".into(),
        payload: format!(r#"{{"schema":"v1","ts":"{}","points":[{{"name":"p","v":{n}}}]}}"#, at(n)).into(),
        qos: 1,
    };
    numbers.map(message).collect()
}

/// Packet ids begin anew with a new session. Mosquitto 2.1 drops what it has queued and never delivered
/// when its packet id is acknowledged; 2.0 does not.
async fn acknowledgements_of_a_lost_session_take_nothing_from_the_next_one(bed: &mut Bed) -> Result<()> {
    let worker = bed.worker_with(|text| text.replace("receiveMaximum: 1000", "receiveMaximum: 20")).await?;
    bed.publish(numbered(0..200)).await?;
    worker.metric("the first are stored", LONG, |m| m.get("ingest_points_total") == 200.0).await?;
    let held = bed.hold_writers().await?;
    // Packet ids 201 to 220 are in hand when the broker forgets the session.
    bed.publish(numbered(200..220)).await?;
    worker.metric("they are in hand", LONG, |m| m.get("ingest_received_total") == 220.0).await?;
    bed.broker()?.stop()?;
    bed.broker()?.wipe()?;
    bed.broker()?.start_again()?;
    worker.metric("the loss is counted", LONG, |m| m.get("ingest_mqtt_sessions_lost_total") > 0.0).await?;
    // 1 to 20 are delivered, 21 to 400 wait in the broker.
    bed.publish(numbered(220..620)).await?;
    worker.metric("the window is full again", LONG, |m| m.get("ingest_received_total") == 240.0).await?;
    held.release().await?;
    let metrics = worker.metric("all are stored", LONG, |m| m.get("ingest_points_total") == 620.0).await?;
    ensure!(bed.sql::<i64>("SELECT count(*) FROM penstock.sample").await? == 620, "stored rows");
    ensure!(metrics.get("ingest_stale_acks_dropped_total") >= 20.0, "old acknowledgements were dropped");
    require_identities(&worker.idle().await?)
}

async fn a_broker_connection_that_is_cut_or_frozen_costs_no_message(bed: &mut Bed) -> Result<()> {
    let proxy = Proxy::start(bed.address.clone()).await?;
    let (direct, through) = (bed.address.clone(), format!("127.0.0.1:{}", proxy.port));
    let worker = bed
        .worker_with(|text| text.replace(&direct, &through).replace("keepAlive: 30s", "keepAlive: 5s"))
        .await?;
    let load = Load::mixed(bed, 500.0);
    for mode in [Mode::Cut, Mode::Freeze, Mode::Cut] {
        worker.metric("messages flow", LONG, |m| m.get("ingest_committed_total") > 200.0).await?;
        proxy.set(mode);
        worker.not_ready("broker_away").await?;
        proxy.set(Mode::Pass);
        worker.ready().await?;
    }
    load.finish(bed, &worker).await.map(drop)
}

async fn acknowledgements_of_an_old_connection_are_dropped(bed: &mut Bed) -> Result<()> {
    let proxy = Proxy::start(bed.address.clone()).await?;
    let (direct, through) = (bed.address.clone(), format!("127.0.0.1:{}", proxy.port));
    let worker = bed.worker_with(|text| text.replace(&direct, &through)).await?;
    let load = Load::mixed(bed, 500.0);
    for _ in 0..3 {
        let held = bed.hold_writers().await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        proxy.set(Mode::Cut);
        worker.not_ready("broker_away").await?;
        proxy.set(Mode::Pass);
        worker.metric("connected again", LONG, |m| m.get("ingest_mqtt_connected") > 0.0).await?;
        held.release().await?;
        worker.ready().await?;
    }
    let (_, metrics) = load.finish(bed, &worker).await?;
    ensure!(
        metrics.get("ingest_stale_acks_dropped_total") > 0.0,
        "there were stale acknowledgements to drop"
    );
    Ok(())
}

async fn a_window_of_20_with_mqtt_3_1_1_is_enough_for_exactness(bed: &mut Bed) -> Result<()> {
    let mut worker = bed.worker_with(|text| text.replace("protocol: V5", "protocol: V311")).await?;
    let load = Load::mixed(bed, 800.0);
    let metrics = worker.metric("messages flow", LONG, |m| m.get("ingest_committed_total") > 2000.0).await?;
    ensure!(
        metrics.get("ingest_mqtt_window_observed") <= 20.0,
        "more than the broker's window was unacknowledged"
    );
    worker.kill();
    let worker = bed.start("one", &[])?;
    worker.ready().await?;
    load.finish(bed, &worker).await.map(drop)
}

async fn a_backlog_that_keeps_the_window_full_leaves_the_worker_ready(bed: &mut Bed) -> Result<()> {
    let worker = bed.worker().await?;
    worker.stop(Duration::from_secs(10)).await?;
    let fleet = Fleet { rate: None, ..Fleet::steady(&bed.address, 0.0, 60_000) };
    let ledger = fleet.run(std::sync::Arc::new(Progress::default())).await?;
    let worker = bed.start("one", &[])?;
    worker.ready().await?;
    let mut backpressured = false;
    while worker.metrics().await?.get("ingest_committed_total") < 55_000.0 {
        let (ready, why) = worker.readiness().await?;
        ensure!(ready, "not ready while it moves: {why}");
        backpressured |= why["backpressured"] == true;
    }
    ensure!(backpressured, "the window was never full");
    let metrics = worker.idle().await?;
    require_identities(&metrics)?;
    crate::compare::compare(&bed.database.admin_url, &ledger, fleet.points).await?.require_exact()
}

async fn qos_0_publishers_are_counted_as_such(bed: &mut Bed) -> Result<()> {
    let worker = bed.worker().await?;
    let fleet = Fleet { qos: 0, ..Fleet::steady(&bed.address, 500.0, 1000) };
    let ledger = fleet.run(std::sync::Arc::new(Progress::default())).await?;
    let metrics = worker.idle().await?;
    ensure!(
        metrics.get("ingest_qos0_received_total") == 1000.0,
        "counted {}",
        metrics.get("ingest_qos0_received_total")
    );
    require_identities(&metrics)?;
    // Nothing was acknowledged to the publishers; what is there must still be right.
    let comparison = crate::compare::compare(&bed.database.admin_url, &ledger, fleet.points).await?;
    ensure!(comparison.found == 4000, "{comparison}");
    comparison.require_exact()
}

async fn a_message_larger_than_the_limit_is_a_dead_letter_and_blocks_nothing(bed: &mut Bed) -> Result<()> {
    let worker = bed
        .worker_with(|text| {
            text.replace("maxPacketSize: 1Mi", "maxPacketSize: 4Ki")
                .replace("maxInHand: 64Mi", "maxInHand: 2Mi")
        })
        .await?;
    let topic = "traksense/t0/s1/dev-00001/telem";
    bed.publish_one(topic, vec![b'x'; 1 << 20]).await?;
    bed.publish_one(topic, format!(r#"{{"schema":"v1","ts":"{}","points":[{{"name":"p0","v":1}}]}}"#, at(1)))
        .await?;
    // Two writers commit in any order.
    worker
        .metric("the small one is stored, the large one a dead letter", LONG, |m| {
            m.get("ingest_points_total") == 1.0 && m.get("ingest_errors_total/too_large") == 1.0
        })
        .await?;
    let bytes: i32 = bed.sql("SELECT payload_bytes FROM penstock.dead_letter JOIN penstock.dead_payload USING (payload_digest) WHERE reason = 'too_large' AND octet_length(payload) = payload_bytes").await?;
    ensure!(bytes == 1 << 20, "the whole payload is kept");
    // Larger than the byte budget: the broker discards it, as `check` says, and goes on.
    bed.publish_one(topic, vec![b'x'; 3 << 20]).await?;
    bed.publish_one(topic, format!(r#"{{"schema":"v1","ts":"{}","points":[{{"name":"p0","v":2}}]}}"#, at(2)))
        .await?;
    worker.metric("the next one is stored", LONG, |m| m.get("ingest_points_total") == 2.0).await?;
    require_identities(&worker.idle().await?)
}

async fn a_filter_that_the_broker_refuses_makes_the_worker_not_ready(bed: &mut Bed) -> Result<()> {
    bed.migrate().await?;
    bed.manifest(|text| {
        text.replace("- {filter: \"traksense/+/+/+/ack\"}", "- {filter: \"secret/+/+/+/ack\"}")
    })?;
    let worker = bed.start("one", &[])?;
    let why = worker.not_ready("subscription_refused").await?;
    ensure!(why["reasons"].to_string().contains("secret/+/+/+/ack"), "the filter is named: {why}");
    Ok(())
}
