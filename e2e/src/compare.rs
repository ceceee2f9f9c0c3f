//! The tables against the ledger, row by row.

use std::collections::HashMap;
use std::fmt;

use anyhow::{Result, ensure};
use sqlx::{Connection, PgConnection, Row};

use crate::fleet::{self, Entry, Kind};

/// How the tables differ from what was published. What the broker acknowledged must be there;
/// what it did not may be; nothing else may.
#[derive(Debug, Default, Clone)]
pub struct Comparison {
    /// Items that the broker acknowledged to their publisher.
    pub acknowledged: u64,
    /// Items found.
    pub found: u64,
    /// Items acknowledged and not found.
    pub lost: u64,
    /// Items found twice.
    pub doubled: u64,
    /// Items found with another value.
    pub wrong: u64,
    /// Rows that nobody published.
    pub unexpected: u64,
    /// The first of these, for a person.
    pub examples: Vec<String>,
}

impl Comparison {
    /// Fails unless nothing is lost, doubled, wrong or unexpected.
    pub fn require_exact(&self) -> Result<()> {
        let faults = self.lost + self.doubled + self.wrong + self.unexpected;
        ensure!(faults == 0, "{self}\n{}", self.examples.join("\n"));
        Ok(())
    }

    fn example(&mut self, what: impl FnOnce() -> String) {
        if self.examples.len() < 10 {
            self.examples.push(what());
        }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} acknowledged, {} found, {} lost, {} doubled, {} wrong, {} unexpected",
            self.acknowledged, self.found, self.lost, self.doubled, self.wrong, self.unexpected
        )
    }
}

/// Compares all tables with the ledger of a fleet.
pub async fn compare(url: &str, ledger: &[Entry], points: u32) -> Result<Comparison> {
    let mut connection = PgConnection::connect(url).await?;
    let mut result = Comparison::default();
    samples(&mut connection, ledger, points, &mut result).await?;
    let keyed = |kind: Kind, key: fn(&Entry) -> String| -> HashMap<String, &Entry> {
        ledger.iter().filter(|entry| entry.kind == kind).map(|entry| (key(entry), entry)).collect()
    };
    let acks = keyed(Kind::Ack, |entry| format!("c-{}-{}", entry.device, entry.n));
    let events = keyed(Kind::Event, |entry| format!("e-{}-{}", entry.device, entry.n));
    let bad = keyed(Kind::Bad, |entry| fleet::payload(entry, 0));
    for (expected, query) in [
        (acks, "SELECT cmd_id, (extract(epoch FROM executed_at) * 1000000)::int8 FROM penstock.command_ack"),
        (events, "SELECT event_key, (extract(epoch FROM ts) * 1000000)::int8 FROM penstock.event"),
        (
            bad,
            "SELECT convert_from(payload, 'UTF8'), NULL::int8 FROM penstock.dead_letter JOIN penstock.dead_payload USING (payload_digest)",
        ),
    ] {
        keyed_rows(&mut connection, query, &expected, &mut result).await?;
    }
    connection.close().await?;
    Ok(result)
}

async fn samples(
    connection: &mut PgConnection,
    ledger: &[Entry],
    points: u32,
    result: &mut Comparison,
) -> Result<()> {
    let series: HashMap<i32, (String, u32)> = sqlx::query(
        "SELECT e.series_id, d.name, substr(e.point, 2)::int4 FROM penstock.series e JOIN penstock.device d USING (device_id)",
    )
    .fetch_all(&mut *connection)
    .await?
    .iter()
    .map(|row| Ok((row.try_get(0)?, (row.try_get(1)?, row.try_get::<i32, _>(2)? as u32))))
    .collect::<Result<_, sqlx::Error>>()?;
    let telemetry = || ledger.iter().filter(|entry| entry.kind == Kind::Telemetry);
    // Which points of each message were found.
    let mut seen: HashMap<(u32, i64), (&Entry, u64)> =
        telemetry().map(|entry| ((entry.device, entry.ts), (entry, 0))).collect();
    let number = |name: &str| name.strip_prefix("dev-").and_then(|digits| digits.parse::<u32>().ok());
    let rows: Vec<(i32, i64, Option<f64>)> = sqlx::query_as(
        "SELECT series_id, (extract(epoch FROM ts) * 1000000)::int8, v_num FROM penstock.sample",
    )
    .fetch_all(connection)
    .await?;
    for (series_id, ts, found) in rows {
        result.found += 1;
        let place = series.get(&series_id).and_then(|(device, point)| Some((number(device)?, *point)));
        let entry = place.and_then(|(device, point)| Some((seen.get_mut(&(device, ts))?, point)));
        let Some(((entry, bits), point)) = entry else {
            result.unexpected += 1;
            result.example(|| format!("unexpected sample of series {series_id} at {ts}"));
            continue;
        };
        if *bits & (1 << point) != 0 {
            result.doubled += 1;
            result.example(|| format!("doubled: {entry:?} point {point}"));
        }
        *bits |= 1 << point;
        if found != Some(fleet::value(entry, point)) {
            result.wrong += 1;
            result.example(|| format!("wrong: {entry:?} point {point} is {found:?}"));
        }
    }
    for (entry, bits) in seen.values().filter(|(entry, _)| entry.acknowledged) {
        result.acknowledged += u64::from(points);
        let lost = points - bits.count_ones();
        if lost > 0 {
            result.lost += u64::from(lost);
            result.example(|| format!("lost: {lost} of {entry:?}"));
        }
    }
    Ok(())
}

async fn keyed_rows(
    connection: &mut PgConnection,
    query: &str,
    expected: &HashMap<String, &Entry>,
    result: &mut Comparison,
) -> Result<()> {
    let rows: Vec<(String, Option<i64>)> = sqlx::query_as(query).fetch_all(connection).await?;
    let mut found: HashMap<&str, u32> = HashMap::new();
    for (key, ts) in &rows {
        result.found += 1;
        match expected.get(key) {
            None => {
                result.unexpected += 1;
                result.example(|| format!("unexpected: {key}"));
            }
            Some(entry) => {
                *found.entry(key).or_default() += 1;
                if ts.is_some_and(|ts| ts != entry.ts) {
                    result.wrong += 1;
                    result.example(|| format!("wrong time of {key}: {ts:?}"));
                }
            }
        }
    }
    result.doubled += found.values().map(|count| u64::from(count - 1)).sum::<u64>();
    for (key, _) in expected.iter().filter(|(_, entry)| entry.acknowledged) {
        result.acknowledged += 1;
        if !found.contains_key(key.as_str()) {
            result.lost += 1;
            result.example(|| format!("lost: {key}"));
        }
    }
    Ok(())
}
