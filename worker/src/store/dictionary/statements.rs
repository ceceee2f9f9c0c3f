//! Statements that find or make tenants, devices and series.

use std::collections::BTreeSet;

use hashbrown::{HashMap, HashSet};
use sqlx::{PgConnection, Row};

use super::Key;

/// The tenant's id.
pub(super) async fn tenant_id(connection: &mut PgConnection, name: &str) -> Result<i32, sqlx::Error> {
    loop {
        let id = sqlx::query_scalar(
            "WITH found AS (SELECT tenant_id FROM penstock.tenant WHERE name = $1), \
             made AS (INSERT INTO penstock.tenant (name) SELECT $1 WHERE NOT EXISTS (SELECT FROM found) \
                      ON CONFLICT DO NOTHING RETURNING tenant_id) \
             SELECT tenant_id FROM found UNION ALL SELECT tenant_id FROM made",
        )
        .bind(name)
        .fetch_optional(&mut *connection)
        .await?;
        // Neither: another made it since this statement began. The next one sees it.
        if let Some(id) = id {
            return Ok(id);
        }
    }
}

/// Ids by site and name.
pub(super) async fn devices(
    connection: &mut PgConnection,
    tenant_id: i32,
    keys: &[&Key],
) -> Result<HashMap<(String, String), i32>, sqlx::Error> {
    let wanted: BTreeSet<(&str, &str)> =
        keys.iter().map(|key| (key.site.as_str(), key.device.as_str())).collect();
    let mut found: HashMap<(String, String), i32> = HashMap::with_capacity(wanted.len());
    while found.len() < wanted.len() {
        let missing: Vec<(&str, &str)> = wanted
            .iter()
            .filter(|(s, d)| !found.contains_key(&((*s).to_owned(), (*d).to_owned())))
            .copied()
            .collect();
        // Anti-join first: a conflict would use up an id.
        let rows = sqlx::query(
            "WITH k AS (SELECT * FROM unnest($2::text[], $3::text[]) AS k(site, name)), \
             made AS (INSERT INTO penstock.device (tenant_id, site, name) \
                      SELECT $1, k.site, k.name FROM k LEFT JOIN penstock.device d \
                        ON (d.tenant_id, d.site, d.name) = ($1, k.site, k.name) \
                      WHERE d.device_id IS NULL ORDER BY k.site, k.name \
                      ON CONFLICT DO NOTHING RETURNING site, name, device_id) \
             SELECT site, name, device_id FROM made UNION ALL \
             SELECT d.site, d.name, d.device_id FROM k JOIN penstock.device d \
               ON (d.tenant_id, d.site, d.name) = ($1, k.site, k.name)",
        )
        .bind(tenant_id)
        .bind(missing.iter().map(|(site, _)| *site).collect::<Vec<_>>())
        .bind(missing.iter().map(|(_, name)| *name).collect::<Vec<_>>())
        .fetch_all(&mut *connection)
        .await?;
        for row in rows {
            found.insert((row.try_get(0)?, row.try_get(1)?), row.try_get(2)?);
        }
    }
    Ok(found)
}

/// By device and point: the id and the unit.
pub(super) type SeriesFound = HashMap<(i32, String), (i32, Option<String>)>;

/// Finds the series, makes what is missing as far as the tenant's cap allows, and takes over new
/// units. `room`: how many may be made, where that is known already. `take`: of how many may be made, how
/// many now; the others are returned beside those found.
pub(super) async fn series(
    connection: &mut PgConnection,
    tenant_id: i32,
    keys: &[(i32, &Key)],
    max_series: i32,
    room: Option<i32>,
    take: impl FnOnce(usize) -> usize,
) -> Result<(SeriesFound, HashSet<(i32, String)>), sqlx::Error> {
    let mut later = HashSet::new();
    let mut found = find_series(connection, keys).await?;
    let known = |found: &SeriesFound, device: i32, key: &Key| {
        key.point.as_ref().and_then(|point| found.get(&(device, point.clone())).map(|(_, unit)| unit.clone()))
    };
    let missing: BTreeSet<(i32, &str, Option<&str>)> = keys
        .iter()
        .filter(|(device, key)| known(&found, *device, key).is_none())
        .filter_map(|(device, key)| Some((*device, key.point.as_deref()?, key.unit.as_deref())))
        .collect();
    if !missing.is_empty() && room != Some(0) {
        // The tenant's row is the lock under which its series are counted and made.
        let count: i32 = sqlx::query_scalar(
            "SELECT series_count FROM penstock.tenant WHERE tenant_id = $1 FOR NO KEY UPDATE",
        )
        .bind(tenant_id)
        .fetch_one(&mut *connection)
        .await?;
        let room = usize::try_from(max_series.saturating_sub(count)).unwrap_or(0);
        let mut points: Vec<(i32, &str, Option<&str>)> = missing.into_iter().collect();
        points.dedup_by_key(|(device, point, _)| (*device, *point));
        // Another worker may have made some of them before we had the lock.
        let there = find_series(connection, keys).await?;
        points.retain(|(device, point, _)| !there.contains_key(&(*device, (*point).to_owned())));
        points.truncate(room);
        let now = take(points.len());
        later.extend(points.drain(now..).map(|(device, point, _)| (device, point.to_owned())));
        found.extend(there);
        let rows = sqlx::query(
            "INSERT INTO penstock.series (device_id, point, unit) \
             SELECT * FROM unnest($1::int4[], $2::text[], $3::text[]) RETURNING device_id, point, series_id, unit",
        )
        .bind(points.iter().map(|(device, _, _)| *device).collect::<Vec<_>>())
        .bind(points.iter().map(|(_, point, _)| *point).collect::<Vec<_>>())
        .bind(points.iter().map(|(_, _, unit)| *unit).collect::<Vec<_>>())
        .fetch_all(&mut *connection)
        .await?;
        sqlx::query("UPDATE penstock.tenant SET series_count = series_count + $2 WHERE tenant_id = $1")
            .bind(tenant_id)
            .bind(rows.len() as i32)
            .execute(&mut *connection)
            .await?;
        for row in rows {
            found.insert((row.try_get(0)?, row.try_get(1)?), (row.try_get(2)?, row.try_get(3)?));
        }
    }
    for (device, key) in keys {
        let Some(point) = &key.point else { continue };
        let Some((id, unit)) = found.get_mut(&(*device, point.clone())) else { continue };
        if key.unit.is_some() && key.unit != *unit {
            sqlx::query("UPDATE penstock.series SET unit = $2 WHERE series_id = $1")
                .bind(*id)
                .bind(&key.unit)
                .execute(&mut *connection)
                .await?;
            unit.clone_from(&key.unit);
        }
    }
    Ok((found, later))
}

async fn find_series(
    connection: &mut PgConnection,
    keys: &[(i32, &Key)],
) -> Result<SeriesFound, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT e.device_id, e.point, e.series_id, e.unit FROM unnest($1::int4[], $2::text[]) AS k(device_id, point) \
         JOIN penstock.series e USING (device_id, point)",
    )
    .bind(keys.iter().map(|(device, _)| *device).collect::<Vec<_>>())
    .bind(keys.iter().map(|(_, key)| key.point.as_deref().unwrap_or_default()).collect::<Vec<_>>())
    .fetch_all(connection)
    .await?;
    let mut found = SeriesFound::with_capacity(rows.len());
    for row in rows {
        found.insert((row.try_get(0)?, row.try_get(1)?), (row.try_get(2)?, row.try_get(3)?));
    }
    Ok(found)
}
