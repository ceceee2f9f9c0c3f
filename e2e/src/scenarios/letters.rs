//! Dead letters day by day: listed, shown, taken out, replayed, removed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::load::Load;
use crate::bed::{Bed, require_identities};
use crate::compare::compare;
use crate::fleet::{Fleet, at};
use crate::publisher::Outgoing;
use crate::scenario;
use crate::suite::Scenario;
use crate::worker::{self, Worker};

const LONG: Duration = Duration::from_secs(60);
const DEVICE: &str = "traksense/t0/s1/dev-00000";

pub fn all() -> Vec<Scenario> {
    vec![
        scenario!(dead_letters_are_listed_shown_and_exported_as_they_are),
        scenario!(a_replay_by_a_corrected_rule_stores_what_was_published_and_two_at_once_store_it_once),
        scenario!(a_replayed_part_leaves_the_good_parts_as_they_are_and_what_still_fails_keeps_its_letter),
        scenario!(a_replayed_sample_without_a_time_has_that_of_its_receipt_however_often_it_is_replayed),
        scenario!(a_letter_that_comes_again_has_its_whole_payload_and_begins_anew),
        scenario!(a_letter_whose_original_bytes_are_gone_is_not_replayed),
        scenario!(a_purge_removes_what_matches_and_needs_to_be_told_so),
    ]
}

/// Runs a command on dead letters; it must succeed.
async fn letters(bed: &Bed, arguments: &[&str]) -> Result<String> {
    let (good, said) = tried(bed, arguments).await?;
    ensure!(good, "{arguments:?}: {said}");
    Ok(said)
}

async fn tried(bed: &Bed, arguments: &[&str]) -> Result<(bool, String)> {
    let arguments = [&["dead-letters"], arguments].concat();
    worker::command(&arguments, &bed.folder.join("plant.yaml"), &bed.secrets()).await
}

/// The sums of a replay.
async fn replay(bed: &Bed, arguments: &[&str]) -> Result<Value> {
    let said = letters(bed, &[&["replay", "--json"], arguments].concat()).await?;
    let last = said.lines().last().context("a line with the sums")?;
    serde_json::from_str(last).with_context(|| said.clone())
}

fn message(kind: &str, payload: impl Into<bytes::Bytes>) -> Outgoing {
    Outgoing { topic: format!("{DEVICE}/{kind}"), payload: payload.into(), qos: 1 }
}

async fn committed(worker: &Worker, count: u32) -> Result<()> {
    let what = format!("{count} are committed");
    worker.metric(&what, LONG, |m| m.get("ingest_committed_total") >= f64::from(count)).await.map(drop)
}

async fn dead_letters_are_listed_shown_and_exported_as_they_are(bed: &mut Bed) -> Result<()> {
    let worker = bed.worker().await?;
    let binary: &[u8] = &[0xff, 0x00, 0x1b, b'[', b'2', b'J'];
    let text = r#"{"schema":"v1","ts":"gestern, 5 Uhr","points":[]}"#;
    bed.publish(vec![message("telem", binary), message("telem", text), message("nonsense/telem", "{}")])
        .await?;
    bed.publish_one("traksense/t1/s1/dev-00001/event", "{").await?;
    committed(&worker, 3).await?;
    let table = letters(bed, &["list"]).await?;
    for word in ["invalid_encoding", "invalid_time", "parse_error", "t0", "t1", DEVICE] {
        ensure!(table.contains(word), "{word} is missing:\n{table}");
    }
    for (arguments, lines) in [
        (&["--reason", "invalid_time"][..], 1),
        (&["--reason", "invalid_time", "--reason", "parse_error"], 2),
        (&["--tenant", "t1"], 1),
        (&["--tenant", "t1", "--reason", "invalid_time"], 0),
        (&["--since", "1h"], 3),
        (&["--until", "1h"], 0),
        (&["--since", "2999-01-01T00:00:00Z"], 0),
        (&["--limit", "2"], 2),
        (&["--pipeline", "default/other"], 0),
        (&["--state", "replayed"], 0),
    ] {
        let said = letters(bed, &[&["list", "--json"], arguments].concat()).await?;
        let found = said.lines().filter(|line| line.starts_with('{')).count();
        ensure!(found == lines, "{arguments:?} lists {found}, not {lines}: {said}");
    }
    let (good, said) = tried(bed, &["list", "--reason", "bad_luck"]).await?;
    ensure!(!good && said.contains("invalid_time"), "an unknown reason is refused: {said}");

    let rows: Vec<(String, String, String)> = bed
        .rows(
            "SELECT encode(digest, 'hex'), reason, translate(encode(payload, 'base64'), E'\\n', '') \
             FROM penstock.dead_letter JOIN penstock.dead_payload USING (payload_digest)",
        )
        .await?;
    let file = bed.folder.join("letters.jsonl");
    letters(bed, &["export", "--output", &file.to_string_lossy()]).await?;
    let exported = std::fs::read_to_string(&file)?;
    ensure!(exported == letters(bed, &["export"]).await?, "a file holds what standard output would");
    for (digest, reason, payload) in &rows {
        let line = exported.lines().find(|line| line.contains(digest.as_str())).context("its line")?;
        let object: Value = serde_json::from_str(line)?;
        ensure!(object["reason"] == **reason && object["payload"] == **payload, "{object} is not {payload}");
        let shown = letters(bed, &["show", &digest[..12]]).await?;
        let body = if reason == "invalid_encoding" { "ff001b5b324a" } else { "{" };
        ensure!(shown.contains(digest) && shown.contains(body) && !shown.contains('\u{1b}'), "{shown}");
    }
    let (good, said) = tried(bed, &["show", "zz"]).await?;
    ensure!(!good && said.contains("hexadecimal"), "no digest: {said}");
    Ok(())
}

async fn a_replay_by_a_corrected_rule_stores_what_was_published_and_two_at_once_store_it_once(
    bed: &mut Bed,
) -> Result<()> {
    // One level too many: no topic fits.
    let worker = bed.worker_with(|text| text.replace("{device}/{kind}", "{device}/x/{kind}")).await?;
    let fleet = Fleet { mixed: true, ..Fleet::steady(&bed.address, 2000.0, 4000) };
    let load = Load::start(fleet.clone());
    let ledger = load.ledger().await?;
    let metrics = worker.idle().await?;
    ensure!(metrics.get("ingest_dead_letters_total/invalid_topic") >= 4000.0, "all are dead letters");
    ensure!(bed.sql::<i64>("SELECT count(*) FROM penstock.sample").await? == 0, "nothing is stored");

    bed.manifest(|text| text)?;
    let first = replay(bed, &["--limit", "700"]).await?;
    ensure!(first["messages"] == 700 && first["items"]["dead_lettered"] != 0, "the first part: {first}");
    let (a, b) = tokio::try_join!(replay(bed, &[]), replay(bed, &[]))?;
    let stored = |sums: &Value| sums["items"]["stored"].as_u64().unwrap_or_default();
    let rows: i64 = bed
        .sql(
            "SELECT (SELECT count(*) FROM penstock.sample) + (SELECT count(*) FROM penstock.event) \
             + (SELECT count(*) FROM penstock.command_ack)",
        )
        .await?;
    ensure!(
        stored(&first) + stored(&a) + stored(&b) == rows as u64,
        "{first}, {a} and {b} stored {rows} rows"
    );
    let again = replay(bed, &["--reason", "invalid_topic"]).await?;
    ensure!(again["messages"] == 0 && stored(&again) == 0, "there is nothing left to replay: {again}");
    // What was replayed goes; what no rule can help is left, under its new reason.
    letters(bed, &["purge", "--state", "replayed", "--yes"]).await?;
    let reasons: Vec<(String,)> = bed.rows("SELECT DISTINCT reason FROM penstock.dead_letter").await?;
    ensure!(reasons == [("invalid_time".to_owned(),)], "left are {reasons:?}");
    compare(&bed.database.admin_url, &ledger, fleet.points).await?.require_exact()?;
    require_identities(&worker.metrics().await?)
}

async fn a_replayed_part_leaves_the_good_parts_as_they_are_and_what_still_fails_keeps_its_letter(
    bed: &mut Bed,
) -> Result<()> {
    let worker = bed.worker_with(|text| text.replace("maxAge: 30d", "maxAge: 10m")).await?;
    bed.execute("ALTER TABLE penstock.sample ADD CONSTRAINT good CHECK (v_num <> 13)").await?;
    let point = |name: &str, value: &str| format!(r#"{{"name":"{name}","v":{value}}}"#);
    let telemetry = |ts: &str, points: &[String]| {
        message(
            "telem",
            format!(r#"{{"schema":"v1","ts":"{ts}","points":[{}],"meta":{{"fw":"1"}}}}"#, points.join(",")),
        )
    };
    let old = jiff::Timestamp::from_microsecond(crate::fleet::now() - 3_600_000_000)?.to_string();
    bed.publish(vec![
        telemetry(&at(1), &[point("a", "1"), point("b", "13"), point("c", "true")]),
        telemetry(&old, &[point("a", "7"), point("b", "8")]),
        message("event", format!(r#"{{"schema":"v1","event_type":"door","ts":"{old}"}}"#)),
    ])
    .await?;
    committed(&worker, 3).await?;
    // By the rules of now nothing changes.
    let sums = replay(bed, &[]).await?;
    ensure!(
        sums["letters"]["still_fails"] == 4 && sums["items"]["stored"] == 0,
        "all fail as before: {sums}"
    );
    let said = letters(bed, &["replay"]).await?;
    ensure!(said.contains("accept window allows 600 s"), "it says why: {said}");

    bed.execute("ALTER TABLE penstock.sample DROP CONSTRAINT good").await?;
    bed.manifest(|text| text)?;
    let sums = replay(bed, &[]).await?;
    ensure!(sums["letters"]["replayed"] == 3 && sums["letters"]["still_fails"] == 1, "one is left: {sums}");
    let rows: Vec<(String, f64)> = bed
        .rows(
            "SELECT e.point, s.v_num FROM penstock.sample s JOIN penstock.series e USING (series_id) ORDER BY s.ts, e.point",
        )
        .await?;
    let expected = [("a", 7.0), ("b", 8.0), ("a", 1.0), ("b", 13.0)].map(|(point, v)| (point.to_owned(), v));
    ensure!(rows == expected, "stored are {rows:?}");
    // An event without an id has the digest of its payload as its key, as if it had come live.
    bed.manifest(|text| text)?;
    worker.stop(LONG).await?;
    let worker = bed.start("one", &[])?;
    worker.ready().await?;
    bed.publish_one(
        &format!("{DEVICE}/event"),
        format!(r#"{{"schema":"v1","event_type":"door","ts":"{old}"}}"#),
    )
    .await?;
    let metrics = worker
        .metric("it is there already", LONG, |m| m.get("ingest_outcomes_total/deduplicated") >= 1.0)
        .await?;
    ensure!(metrics.get("ingest_outcomes_total/stored") == 0.0, "the event is stored once");
    // A letter that was replayed, and comes again under a rule that refuses it, is open again.
    worker.stop(LONG).await?;
    bed.manifest(|text| text.replace("maxAge: 30d", "maxAge: 10m"))?;
    let worker = bed.start("one", &[])?;
    worker.ready().await?;
    bed.publish(vec![telemetry(&old, &[point("a", "7"), point("b", "8")])]).await?;
    committed(&worker, 1).await?;
    let open = "SELECT count(*) FROM penstock.dead_letter WHERE replayed_at IS NULL AND reason = 'ts_window'";
    ensure!(bed.sql::<i64>(open).await? == 1, "it is open again");
    require_identities(&worker.idle().await?)
}

async fn a_replayed_sample_without_a_time_has_that_of_its_receipt_however_often_it_is_replayed(
    bed: &mut Bed,
) -> Result<()> {
    let worker = bed.worker().await?;
    bed.publish_one(&format!("{DEVICE}/telem"), r#"{"schema":"v1","points":[{"name":"whole","v":1}]}"#)
        .await?;
    committed(&worker, 1).await?;
    worker.stop(LONG).await?;
    bed.manifest(|text| text.replace("receiveTime: Reject", "receiveTime: Allow"))?;
    let worker = bed.start("one", &[])?;
    worker.ready().await?;
    let partly = r#"{"schema":"v1","points":[{"name":"good","v":1},{"name":"bad","v":"x"}]}"#;
    bed.publish_one(&format!("{DEVICE}/telem"), partly).await?;
    committed(&worker, 1).await?;
    for time in 0..3 {
        replay(bed, &[]).await?;
        bed.execute("UPDATE penstock.dead_letter SET replayed_at = NULL").await?;
        let rows: Vec<(String, bool)> = bed
            .rows(
                "SELECT e.point, s.ts IN (SELECT received_at FROM penstock.dead_letter) FROM penstock.sample s \
                 JOIN penstock.series e USING (series_id) ORDER BY e.point",
            )
            .await?;
        ensure!(rows == [("good".to_owned(), true), ("whole".to_owned(), true)], "replay {time}: {rows:?}");
    }
    Ok(())
}

async fn a_letter_whose_original_bytes_are_gone_is_not_replayed(bed: &mut Bed) -> Result<()> {
    let worker = bed.worker_with(|text| text.replace("{device}/{kind}", "{device}/x/{kind}")).await?;
    let sample = |n: u32| format!(r#"{{"schema":"v1","ts":"{}","points":[{{"name":"p","v":{n}}}]}}"#, at(n));
    bed.publish((0..3).map(|n| message("telem", sample(n))).collect()).await?;
    committed(&worker, 3).await?;
    bed.execute(&format!(
        "UPDATE penstock.dead_payload SET payload = substr(payload, 1, 9), truncated = true WHERE position('{}' in convert_from(payload, 'UTF8')) > 0; \
         UPDATE penstock.dead_letter SET topic = replace(topic, 'dev', U&'d\\FFFDv') WHERE payload_digest IN \
           (SELECT payload_digest FROM penstock.dead_payload WHERE position('{}' in convert_from(payload, 'UTF8')) > 0)",
        at(0), at(1)
    ))
    .await?;
    bed.manifest(|text| text)?;
    let sums = replay(bed, &[]).await?;
    let letters_of = |word: &str| sums["letters"][word].as_u64();
    ensure!(
        (letters_of("replayed"), letters_of("truncated"), letters_of("topic_lost"))
            == (Some(1), Some(1), Some(1)),
        "{sums}"
    );
    let said = letters(bed, &["replay"]).await?;
    ensure!(said.contains("maxSize") && said.contains("UTF-8"), "it says why: {said}");
    ensure!(bed.sql::<i64>("SELECT count(*) FROM penstock.sample").await? == 1, "one is stored");
    Ok(())
}

async fn a_letter_that_comes_again_has_its_whole_payload_and_begins_anew(bed: &mut Bed) -> Result<()> {
    let worker = bed.worker().await?;
    let payload = format!(r#"{{"schema":"v1","points":[{{"name":"{}","v":1}}]}}"#, "p".repeat(100));
    bed.publish(vec![message("telem", payload.clone())]).await?;
    committed(&worker, 1).await?;
    bed.execute(
        "UPDATE penstock.dead_payload SET payload = substr(payload, 1, 64), truncated = true; \
         UPDATE penstock.dead_letter SET received_at = received_at - interval '29 days', replayed_at = now()",
    )
    .await?;
    let of_another =
        Outgoing { topic: "traksense/t1/s1/dev-00001/telem".into(), ..message("telem", payload.clone()) };
    bed.publish(vec![of_another, message("telem", payload.clone())]).await?;
    committed(&worker, 3).await?;
    let letters: Vec<(String, bool, bool, bool)> = bed
        .rows(
            "SELECT convert_from(payload, 'UTF8'), truncated, replayed_at IS NULL, l.received_at > now() - interval '1 day' \
             FROM penstock.dead_letter l JOIN penstock.dead_payload USING (payload_digest)",
        )
        .await?;
    let whole = (payload, false, true, true);
    ensure!(letters == [whole.clone(), whole], "{letters:?}");
    require_identities(&worker.idle().await?)
}

async fn a_purge_removes_what_matches_and_needs_to_be_told_so(bed: &mut Bed) -> Result<()> {
    let worker = bed.worker().await?;
    // Two letters with one payload, and one of another reason.
    bed.publish_one("traksense/t0/s1/dev-00000/telem", "{").await?;
    bed.publish_one("traksense/t1/s1/dev-00001/telem", "{").await?;
    bed.publish_one("traksense/t0/s1/dev-00000/telem", r#"{"schema":"v1","ts":"x","points":[]}"#).await?;
    committed(&worker, 3).await?;
    let counts = || {
        bed.row::<(i64, i64)>("SELECT (SELECT count(*) FROM penstock.dead_letter), (SELECT count(*) FROM penstock.dead_payload)")
    };
    for (arguments, words) in [(&["purge"][..], "--all"), (&["purge", "--tenant", "t0"], "2 dead letters")] {
        let (good, said) = tried(bed, arguments).await?;
        ensure!(!good && said.contains(words), "{arguments:?}: {said}");
    }
    ensure!(counts().await? == (3, 2), "nothing is removed");
    for (arguments, left) in [
        (&["purge", "--tenant", "t0", "--reason", "parse_error", "--yes"][..], (2, 2)),
        (&["purge", "--tenant", "t1", "--yes"], (1, 1)),
        (&["purge", "--all", "--yes"], (0, 0)),
    ] {
        letters(bed, arguments).await?;
        let found = counts().await?;
        ensure!(found == left, "{arguments:?} leaves {found:?}");
    }
    // A writer goes on meanwhile: no letter is ever without its payload.
    let fleet = Fleet { mixed: true, ..Fleet::steady(&bed.address, 2000.0, 1_000_000) };
    let load = Load::start(fleet);
    for _ in 0..20 {
        letters(bed, &["purge", "--all", "--yes"]).await?;
    }
    load.stop().await?;
    worker.idle().await?;
    let without = "SELECT count(*) FROM penstock.dead_letter WHERE payload_digest NOT IN (SELECT payload_digest FROM penstock.dead_payload)";
    ensure!(bed.sql::<i64>(without).await? == 0, "each letter has its payload");
    require_identities(&worker.metrics().await?)
}
