//! Ids of devices and series: cached, and otherwise resolved before and outside a batch's
//! transaction, so that writers never wait for one another's new series.

mod statements;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use compact_str::CompactString;
use hashbrown::{DefaultHashBuilder, HashMap};
use indexmap::IndexMap;
use sqlx::{Connection, PgConnection, PgPool, Row};

use super::connection;
use super::series_rate::SeriesRate;
use crate::decode::Source;

/// Keys of one short transaction.
const CHUNK: usize = 1000;
/// How long a tenant at its cap is not asked about again.
const REFUSED_FOR: Duration = Duration::from_secs(30);
/// Series that are read at start.
const WARM: i64 = 1_000_000;

/// A device, or a series of one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    tenant: String,
    site: String,
    device: String,
    /// `None` for the device itself.
    point: Option<String>,
    unit: Option<String>,
}

impl Key {
    /// A series.
    pub fn series(source: &Source<'_>, point: &str, unit: Option<&str>) -> Self {
        Self { point: Some(point.to_owned()), unit: unit.map(str::to_owned), ..Self::device(source) }
    }

    /// A device.
    pub fn device(source: &Source<'_>) -> Self {
        Self {
            tenant: source.tenant.to_owned(),
            site: source.site.to_owned(),
            device: source.device.to_owned(),
            point: None,
            unit: None,
        }
    }
}

/// What became of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The id of the device or the series.
    Known(i32),
    /// The tenant has as many series as it may have.
    Cardinality {
        /// For a person.
        detail: String,
    },
    /// The tenant begins series faster than it may: ask again then.
    Later(Duration),
}

/// Ids of devices and series.
#[derive(Debug)]
pub struct Dictionary {
    pool: PgPool,
    allowed: Mutex<Allowed>,
    cache: RwLock<Cache>,
}

/// What a tenant may have.
#[derive(Debug)]
struct Allowed {
    max_series: i32,
    per_minute: Option<u32>,
    rate: Option<SeriesRate>,
}

#[derive(Debug, Default)]
struct Cache {
    devices: HashMap<DeviceKey, Device>,
    series: usize,
    /// Tenants at their cap, and until when they are not asked about again.
    full: HashMap<Box<str>, Instant>,
}

// A lookup is as fast as the memory that it touches: short names stand in the maps themselves.
#[derive(Debug, PartialEq, Eq, Hash)]
struct DeviceKey {
    tenant: CompactString,
    site: CompactString,
    device: CompactString,
}

impl hashbrown::Equivalent<DeviceKey> for Source<'_> {
    fn equivalent(&self, key: &DeviceKey) -> bool {
        *key.tenant == *self.tenant && *key.site == *self.site && *key.device == *self.device
    }
}

#[derive(Debug)]
struct Device {
    id: i32,
    series: IndexMap<CompactString, Series, DefaultHashBuilder>,
    first: Hint,
}

#[derive(Debug)]
struct Series {
    id: i32,
    next: Hint,
    unit: Option<CompactString>,
}

/// Where the series stood that came next in an earlier message: devices send their points in the same
/// order each time, and a look there spares the search. A wrong one costs a comparison.
#[derive(Debug, Default)]
struct Hint(AtomicU32);

/// What is cached. Nothing is added while this is held.
#[derive(Debug)]
pub struct Known<'a>(RwLockReadGuard<'a, Cache>);

impl Known<'_> {
    /// The device's id, and its series.
    pub fn device(&self, source: &Source<'_>) -> Option<(i32, OfDevice<'_>)> {
        let device = self.0.devices.get(source)?;
        Some((device.id, OfDevice { device, hint: &device.first }))
    }
}

/// The cached series of a device, for the points of one message in their order.
#[derive(Debug)]
pub struct OfDevice<'a> {
    device: &'a Device,
    hint: &'a Hint,
}

impl OfDevice<'_> {
    /// The series' id, if it is cached with this unit. A sample without a unit has the series' own.
    pub fn series(&mut self, point: &str, unit: Option<&str>) -> Option<i32> {
        let hinted = self.hint.0.load(Ordering::Relaxed);
        let series = match self.device.series.get_index(hinted as usize) {
            Some((name, series)) if name == point => series,
            _ => {
                let (index, _, series) = self.device.series.get_full(point)?;
                self.hint.0.store(index as u32, Ordering::Relaxed);
                series
            }
        };
        self.hint = &series.next;
        (unit.is_none() || series.unit.as_deref() == unit).then_some(series.id)
    }
}

impl Dictionary {
    /// An empty cache before a database. `max_series`: most series of a tenant.
    pub fn new(pool: PgPool, max_series: i32) -> Self {
        let allowed = Mutex::new(Allowed { max_series, per_minute: None, rate: None });
        Self { pool, allowed, cache: RwLock::default() }
    }

    /// From now on a tenant may have so many series, and begin only so many a minute.
    pub fn allow(&self, max_series: i32, per_minute: Option<u32>) {
        let mut allowed = self.allowed();
        if allowed.per_minute != per_minute {
            allowed.per_minute = per_minute;
            allowed.rate = per_minute.map(SeriesRate::new);
        }
        if allowed.max_series != max_series {
            allowed.max_series = max_series;
            self.write().full.clear();
        }
    }

    fn allowed(&self) -> MutexGuard<'_, Allowed> {
        self.allowed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many of so many new series may begin now.
    fn take(&self, tenant: &str, wanted: usize) -> usize {
        self.allowed().rate.as_mut().map_or(wanted, |rate| rate.take(tenant, wanted, Instant::now()))
    }

    /// When so many more may begin.
    fn wait(&self, tenant: &str, more: usize) -> Duration {
        self.allowed().rate.as_ref().map_or(Duration::ZERO, |rate| rate.wait(tenant, more, Instant::now()))
    }

    fn read(&self) -> RwLockReadGuard<'_, Cache> {
        self.cache.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Cache> {
        self.cache.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is cached, for the items of one message.
    pub fn known(&self) -> Known<'_> {
        Known(self.read())
    }

    /// Series in the cache.
    pub fn cached(&self) -> usize {
        self.read().series
    }

    /// Reads the newest series into the cache. Returns how many.
    pub async fn warm(&self, connection: &mut PgConnection) -> Result<usize, sqlx::Error> {
        let rows = sqlx::query(
            "SELECT t.name, d.site, d.name, d.device_id, e.point, e.unit, e.series_id \
             FROM penstock.series e JOIN penstock.device d USING (device_id) JOIN penstock.tenant t USING (tenant_id) \
             ORDER BY e.series_id DESC LIMIT $1",
        )
        .bind(WARM)
        .fetch_all(connection)
        .await?;
        let mut cache = self.write();
        for row in &rows {
            let source = Source { tenant: row.try_get(0)?, site: row.try_get(1)?, device: row.try_get(2)? };
            cache.put_series(&source, row.try_get(3)?, row.try_get(4)?, row.try_get(5)?, row.try_get(6)?);
        }
        Ok(rows.len())
    }

    /// Finds or makes what the keys name; a verdict for each, in their order. After an error nothing
    /// is lost but time: whatever was made is found the next time.
    pub async fn resolve(&self, keys: Vec<Key>) -> Result<Vec<Verdict>, sqlx::Error> {
        let wanted: BTreeSet<&Key> = keys.iter().collect();
        let mut verdicts: HashMap<&Key, Verdict> = HashMap::with_capacity(wanted.len());
        let wanted: Vec<&Key> = wanted.into_iter().collect();
        // Sorted by tenant first, so that a run of one tenant is one transaction.
        for of_tenant in wanted.chunk_by(|a, b| a.tenant == b.tenant) {
            let mut late = 0;
            for chunk in of_tenant.chunks(CHUNK) {
                self.resolve_chunk(chunk, &mut late, &mut verdicts).await?;
            }
        }
        let unknown = || Verdict::Cardinality { detail: "the key was not resolved".to_owned() };
        Ok(keys.iter().map(|key| verdicts.get(key).cloned().unwrap_or_else(unknown)).collect())
    }

    /// One short transaction for keys of one tenant. `late`: how many of its keys are to be asked again.
    async fn resolve_chunk<'k>(
        &self,
        keys: &[&'k Key],
        late: &mut usize,
        verdicts: &mut HashMap<&'k Key, Verdict>,
    ) -> Result<(), sqlx::Error> {
        let Some(tenant) = keys.first().map(|key| key.tenant.as_str()) else { return Ok(()) };
        let refused = self.read().full.get(tenant).is_some_and(|until| Instant::now() < *until);
        let mut connection = connection::borrow(&self.pool).await?;
        let mut transaction = connection.begin().await?;
        let tenant_id = statements::tenant_id(&mut transaction, tenant).await?;
        let devices = statements::devices(&mut transaction, tenant_id, keys).await?;
        let device_of = |key: &Key| devices.get(&(key.site.clone(), key.device.clone())).copied();
        let series_keys: Vec<(i32, &'k Key)> = keys
            .iter()
            .filter(|key| key.point.is_some())
            .filter_map(|key| Some((device_of(key)?, *key)))
            .collect();
        let max_series = self.allowed().max_series;
        let room = if refused { Some(0) } else { None };
        let take = |wanted| self.take(tenant, wanted);
        let (series, later) =
            statements::series(&mut transaction, tenant_id, &series_keys, max_series, room, take).await?;
        transaction.commit().await?;
        connection.give_back();

        let mut cache = self.write();
        for key in keys {
            let Some(device_id) = device_of(key) else { continue };
            let source = Source { tenant, site: &key.site, device: &key.device };
            cache.device(&source, device_id);
            let Some(point) = &key.point else {
                verdicts.insert(key, Verdict::Known(device_id));
                continue;
            };
            if let Some((id, unit)) = series.get(&(device_id, point.clone())) {
                cache.put_series(&source, device_id, point, unit.as_deref(), *id);
                verdicts.insert(key, Verdict::Known(*id));
            } else if later.contains(&(device_id, point.clone())) {
                *late += 1;
                verdicts.insert(key, Verdict::Later(self.wait(tenant, *late)));
            } else {
                if !refused {
                    cache.full.insert(tenant.into(), Instant::now() + REFUSED_FOR);
                }
                let detail = format!(
                    "tenant '{tenant}' has {max_series} series, as many as spec.tenants.maxSeries allows; raise it"
                );
                verdicts.insert(key, Verdict::Cardinality { detail });
            }
        }
        Ok(())
    }
}

impl Cache {
    fn device(&mut self, source: &Source<'_>, id: i32) -> &mut Device {
        let new = || Device { id, series: IndexMap::default(), first: Hint::default() };
        self.devices.entry(source.into()).or_insert_with(new)
    }

    fn put_series(&mut self, source: &Source<'_>, device: i32, point: &str, unit: Option<&str>, id: i32) {
        let series = Series { id, next: Hint::default(), unit: unit.map(Into::into) };
        if self.device(source, device).series.insert(point.into(), series).is_none() {
            self.series += 1;
        }
    }
}

impl From<&Source<'_>> for DeviceKey {
    fn from(source: &Source<'_>) -> Self {
        let Source { tenant, site, device } = *source;
        Self { tenant: tenant.into(), site: site.into(), device: device.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_found_by_its_name_whatever_order_its_device_sends() {
        let source = Source { tenant: "acme", site: "hall", device: "pump" };
        let mut cache = Cache::default();
        for (id, point) in (10..).zip(["a", "b", "c", "d"]) {
            cache.put_series(&source, 1, point, (point == "c").then_some("bar"), id);
        }
        let cache = RwLock::new(cache);
        for (points, ids) in [
            ("abcd", [Some(10), Some(11), Some(12), Some(13)]),
            ("dbca", [Some(13), Some(11), Some(12), Some(10)]),
            ("dbca", [Some(13), Some(11), Some(12), Some(10)]),
            ("axbb", [Some(10), None, Some(11), Some(11)]),
            ("cbad", [Some(12), Some(11), Some(10), Some(13)]),
        ] {
            let known = Known(cache.read().unwrap());
            let (device, mut series) = known.device(&source).unwrap();
            let found: Vec<_> = points.chars().map(|point| series.series(&point.to_string(), None)).collect();
            assert_eq!((device, found), (1, ids.to_vec()), "{points}");
        }
        let known = Known(cache.read().unwrap());
        let (_, mut series) = known.device(&source).unwrap();
        let units = [Some("bar"), Some("K"), None].map(|unit| series.series("c", unit));
        assert_eq!(units, [Some(12), None, Some(12)]);
    }
}
