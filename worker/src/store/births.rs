//! Sparkplug's births: read before deliveries that others received until then, and written in the transaction of the batch that brought them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use super::rows::SparkplugRow;
use crate::decode::sparkplug::births::{Change, KEPT, Metric, Metrics, Name, State};
use crate::decode::{Decoder, Micros};

/// Has the decoder know all that is stored.
pub async fn teach(decoder: &Decoder, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let stored = load(connection).await?;
    let mut births = decoder.births();
    for change in stored {
        births.learn(change);
    }
    Ok(())
}

async fn load(connection: &mut PgConnection) -> Result<Vec<Change>, sqlx::Error> {
    let births = sqlx::query(
        "SELECT group_id, edge_node, device, (extract(epoch FROM since) * 1000000)::int8, metrics::text \
         FROM penstock.sparkplug_birth ORDER BY since",
    )
    .fetch_all(&mut *connection)
    .await?;
    let states = sqlx::query(
        "SELECT group_id, edge_node, device, (extract(epoch FROM born_at) * 1000000)::int8, bd_seq, \
                (extract(epoch FROM stale_since) * 1000000)::int8 FROM penstock.sparkplug_state",
    )
    .fetch_all(connection)
    .await?;
    births.iter().map(names).chain(states.iter().map(state)).collect()
}

fn names(row: &PgRow) -> Result<Change, sqlx::Error> {
    let metrics: Vec<Metric> =
        serde_json::from_str(row.try_get(4)?).map_err(|error| sqlx::Error::Decode(error.into()))?;
    Ok(Change::Names { of: name(row)?, since: row.try_get(3)?, metrics: Arc::new(Metrics::new(metrics)) })
}

fn state(row: &PgRow) -> Result<Change, sqlx::Error> {
    let state = State { born_at: row.try_get(3)?, bd_seq: row.try_get(4)?, stale_since: row.try_get(5)? };
    Ok(Change::State { of: name(row)?, state })
}

fn name(row: &PgRow) -> Result<Name, sqlx::Error> {
    let text = |column: usize| row.try_get::<&str, _>(column).map(Box::from);
    Ok(Name { group: text(0)?, node: text(1)?, device: text(2)? })
}

/// Stores what a batch changes. Names never change, and of states the newest stays: so it does not
/// matter which of two batches commits first, or whether one comes again.
pub async fn store(connection: &mut PgConnection, rows: &[SparkplugRow]) -> Result<(), sqlx::Error> {
    // In the order of their keys, so that writers do not deadlock.
    let mut names: BTreeMap<(&Name, Micros), &Metrics> = BTreeMap::new();
    let mut states: BTreeMap<&Name, State> = BTreeMap::new();
    for row in rows {
        match &row.change {
            Change::Names { of, since, metrics } => {
                names.entry((of, *since)).or_insert(metrics);
            }
            Change::State { of, state } => match states.entry(of) {
                Entry::Vacant(slot) => {
                    slot.insert(*state);
                }
                Entry::Occupied(mut slot) if state.is_newer_than(slot.get()) => {
                    slot.insert(*state);
                }
                Entry::Occupied(_) => {}
            },
        }
    }
    if !names.is_empty() {
        insert_names(connection, names).await?;
    }
    if !states.is_empty() {
        upsert_states(connection, states).await?;
    }
    Ok(())
}

async fn insert_names(
    connection: &mut PgConnection,
    names: BTreeMap<(&Name, Micros), &Metrics>,
) -> Result<(), sqlx::Error> {
    let documents: Result<Vec<String>, _> =
        names.values().map(|metrics| serde_json::to_string(metrics.all())).collect();
    let documents = documents.map_err(|error| sqlx::Error::Encode(error.into()))?;
    let [groups, nodes, devices] = columns(names.keys().map(|(of, _)| *of));
    sqlx::query(
        "INSERT INTO penstock.sparkplug_birth (group_id, edge_node, device, since, metrics) \
         SELECT group_id, edge_node, device, 'epoch'::timestamptz + since * interval '1 microsecond', metrics::jsonb \
         FROM unnest($1::text[], $2::text[], $3::text[], $4::int8[], $5::text[]) \
           AS r(group_id, edge_node, device, since, metrics) \
         ON CONFLICT DO NOTHING",
    )
    .bind(&groups)
    .bind(&nodes)
    .bind(&devices)
    .bind(names.keys().map(|(_, since)| *since).collect::<Vec<_>>())
    .bind(documents)
    .execute(&mut *connection)
    .await?;
    // Only the last ones are kept, as in memory.
    sqlx::query(
        "DELETE FROM penstock.sparkplug_birth b \
         USING (SELECT DISTINCT * FROM unnest($1::text[], $2::text[], $3::text[])) AS k(group_id, edge_node, device) \
         WHERE (b.group_id, b.edge_node, b.device) = (k.group_id, k.edge_node, k.device) AND b.since < (\
           SELECT x.since FROM penstock.sparkplug_birth x \
           WHERE (x.group_id, x.edge_node, x.device) = (k.group_id, k.edge_node, k.device) \
           ORDER BY x.since DESC OFFSET $4 LIMIT 1)",
    )
    .bind(&groups)
    .bind(&nodes)
    .bind(&devices)
    .bind(KEPT as i64 - 1)
    .execute(connection)
    .await?;
    Ok(())
}

async fn upsert_states(
    connection: &mut PgConnection,
    states: BTreeMap<&Name, State>,
) -> Result<(), sqlx::Error> {
    let [groups, nodes, devices] = columns(states.keys().copied());
    sqlx::query(
        "INSERT INTO penstock.sparkplug_state AS s (group_id, edge_node, device, born_at, bd_seq, stale_since) \
         SELECT group_id, edge_node, device, 'epoch'::timestamptz + born_at * interval '1 microsecond', bd_seq, \
                'epoch'::timestamptz + stale_since * interval '1 microsecond' \
         FROM unnest($1::text[], $2::text[], $3::text[], $4::int8[], $5::int8[], $6::int8[]) \
           AS r(group_id, edge_node, device, born_at, bd_seq, stale_since) \
         ON CONFLICT (group_id, edge_node, device) DO UPDATE \
         SET born_at = excluded.born_at, bd_seq = excluded.bd_seq, stale_since = excluded.stale_since \
         WHERE (excluded.born_at, excluded.stale_since IS NOT NULL) > (s.born_at, s.stale_since IS NOT NULL)",
    )
    .bind(groups)
    .bind(nodes)
    .bind(devices)
    .bind(states.values().map(|state| state.born_at).collect::<Vec<_>>())
    .bind(states.values().map(|state| state.bd_seq).collect::<Vec<_>>())
    .bind(states.values().map(|state| state.stale_since).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// Groups, edge nodes and devices of names.
fn columns<'n>(names: impl Iterator<Item = &'n Name> + Clone) -> [Vec<&'n str>; 3] {
    [
        names.clone().map(|name| &*name.group).collect(),
        names.clone().map(|name| &*name.node).collect(),
        names.map(|name| &*name.device).collect(),
    ]
}
