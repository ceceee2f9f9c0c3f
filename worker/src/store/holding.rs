//! What the holder of a lease notes in its row.

use sqlx::PgPool;

use super::connection;
use super::lease::{Kept, LeaseError, LeaseKey, Me, column, within_deadline};
use super::lease_rules::TTL;

/// A lease as its holder knows it; another may have it by now.
#[derive(Debug, Clone, Copy)]
pub struct Holding<'a> {
    /// The database.
    pub pool: &'a PgPool,
    /// The shard.
    pub key: &'a LeaseKey,
    /// The holder.
    pub me: &'a Me,
    /// Generation of the plan that is followed.
    pub plan: i64,
}

impl Holding<'_> {
    /// Prolongs the lease, if it is still held.
    pub async fn renew(self) -> Result<Kept, LeaseError> {
        let set = format!("expires_at = clock_timestamp() + interval '{} seconds'", TTL.as_secs());
        self.update(&set, &[]).await
    }

    /// Lets anyone take the lease at once. The holder may go on until somebody does; it says so by this again
    /// and again, so that the row tells until when.
    pub async fn release(self) -> Result<Kept, LeaseError> {
        self.update("expires_at = clock_timestamp(), retiring = true", &[]).await
    }

    /// Notes filters that are about to be subscribed.
    pub async fn add_filters(self, session: u8, filters: &[String]) -> Result<Kept, LeaseError> {
        let (column, filters) = column(session, filters);
        let set = format!("{column} = ARRAY(SELECT DISTINCT f FROM unnest({column} || $4) f ORDER BY f)");
        self.update(&set, &filters).await
    }

    /// Notes filters that the session no longer has.
    pub async fn remove_filters(self, session: u8, filters: &[String]) -> Result<Kept, LeaseError> {
        let (column, filters) = column(session, filters);
        let set =
            format!("{column} = ARRAY(SELECT f FROM unnest({column}) f WHERE f <> ALL ($4) ORDER BY f)");
        self.update(&set, &filters).await
    }

    /// Notes that the broker has a session.
    pub async fn set_session_existed(self) -> Result<Kept, LeaseError> {
        self.update("session_existed = true", &[]).await
    }

    /// Changes the row if it is still held by this incarnation. Each change notes which plan is followed, so
    /// that no filter of a plan stands there without its generation, and what could not be noted is by the next
    /// one.
    async fn update(self, set: &str, filters: &[String]) -> Result<Kept, LeaseError> {
        within_deadline(self.try_update(set, filters)).await
    }

    async fn try_update(self, set: &str, filters: &[String]) -> Result<Kept, LeaseError> {
        let statement = format!(
            "UPDATE penstock.shard_lease SET plan_generation = greatest(plan_generation, $5), {set} \
             WHERE shard = $1 AND instance = $2 AND incarnation = $3 AND $4::text[] IS NOT NULL"
        );
        let mut connection = connection::borrow(self.pool).await?;
        let changed = sqlx::query(&statement)
            .bind(&self.key.0)
            .bind(&self.me.instance)
            .bind(self.me.incarnation)
            .bind(filters)
            .bind(self.plan)
            .execute(&mut *connection)
            .await?
            .rows_affected();
        if changed > 0 {
            connection.give_back();
            return Ok(Kept::Held);
        }
        let holder: Option<Option<String>> =
            sqlx::query_scalar("SELECT instance FROM penstock.shard_lease WHERE shard = $1")
                .bind(&self.key.0)
                .fetch_optional(&mut *connection)
                .await?;
        connection.give_back();
        Ok(Kept::Superseded { by: holder.flatten().unwrap_or_else(|| "nobody".to_owned()) })
    }
}
