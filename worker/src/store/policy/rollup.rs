//! The SQL of rollups. Pure.
//!
//! A rollup holds weighted aggregates: counts and sums instead of averages, first and last with their
//! times. So a rollup of a rollup is the same as one of the samples.

use std::fmt;

use super::plan::Seconds;

/// The width of a rollup's buckets, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Width(pub Seconds);

impl fmt::Display for Width {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        penstock_crds::Duration::of_millis(self.0.unsigned_abs() * 1000).fmt(f)
    }
}

/// Its name in the schema `penstock`.
pub fn name(width: Width) -> String {
    format!("rollup_{width}")
}

/// The view for readers, in the schema `penstock`.
pub fn view_name(width: Width) -> String {
    format!("readings_{width}")
}

/// A sum beyond the largest double is an error in PostgreSQL, and would stop the rollups of all series. So a
/// number near it, as devices send in place of none, is counted among the samples alone.
const SUMMABLE: &str = "abs(v_num) < 1e290";

/// The query of a rollup of samples, or of a narrower rollup in this table.
pub fn query(width: Width, from: Option<&str>) -> String {
    let seconds = width.0;
    match from {
        None => format!(
            "SELECT time_bucket(interval '{seconds} seconds', ts) AS bucket, series_id, count(*) AS samples, \
             count(v_num) FILTER (WHERE {SUMMABLE}) AS n, sum(v_num) FILTER (WHERE {SUMMABLE}) AS v_sum, \
             min(v_num) FILTER (WHERE {SUMMABLE}) AS v_min, max(v_num) FILTER (WHERE {SUMMABLE}) AS v_max, \
             first(v_num, ts) FILTER (WHERE {SUMMABLE}) AS v_first, min(ts) FILTER (WHERE {SUMMABLE}) AS first_ts, \
             last(v_num, ts) FILTER (WHERE {SUMMABLE}) AS v_last, max(ts) FILTER (WHERE {SUMMABLE}) AS last_ts, \
             count(v_bool) AS bools, count(*) FILTER (WHERE v_bool) AS trues \
             FROM penstock.sample GROUP BY 1, 2"
        ),
        Some(table) => format!(
            "SELECT time_bucket(interval '{seconds} seconds', bucket) AS bucket, series_id, \
             sum(samples)::int8 AS samples, sum(n)::int8 AS n, sum(v_sum) AS v_sum, min(v_min) AS v_min, \
             max(v_max) AS v_max, first(v_first, first_ts) FILTER (WHERE n > 0) AS v_first, \
             min(first_ts) AS first_ts, last(v_last, last_ts) FILTER (WHERE n > 0) AS v_last, \
             max(last_ts) AS last_ts, sum(bools)::int8 AS bools, sum(trues)::int8 AS trues \
             FROM {table} GROUP BY 1, 2"
        ),
    }
}

/// Makes the rollup, empty: its policy fills it.
pub fn create(width: Width, from: Option<Width>) -> String {
    let from = from.map(|from| format!("penstock.{}", name(from)));
    format!(
        "CREATE MATERIALIZED VIEW penstock.{} WITH (timescaledb.continuous, timescaledb.materialized_only = false) \
         AS {} WITH NO DATA",
        name(width),
        query(width, from.as_deref())
    )
}

/// Makes the view in which readers see their tenants' buckets.
pub fn views(width: Width) -> Vec<String> {
    let (name, view) = (name(width), view_name(width));
    vec![
        format!(
            "CREATE OR REPLACE VIEW penstock.{view} WITH (security_barrier) AS \
             SELECT r.bucket AS ts, t.name AS tenant, d.site, d.name AS device, e.point, r.samples, r.n, \
             r.v_sum / nullif(r.n, 0) AS v_avg, r.v_sum, r.v_min, r.v_max, r.v_first, r.first_ts, r.v_last, r.last_ts, \
             r.bools, r.trues, e.unit \
             FROM penstock.{name} r JOIN penstock.series e USING (series_id) JOIN penstock.device d USING (device_id) \
             JOIN penstock.my_tenant t USING (tenant_id)"
        ),
        format!(
            "DO $$ BEGIN IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'penstock_reader') THEN \
             GRANT SELECT ON penstock.{view} TO penstock_reader; END IF; END $$"
        ),
    ]
}
