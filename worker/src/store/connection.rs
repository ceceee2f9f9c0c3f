//! How to reach the database, and what every session of the worker sets.

use std::ops::{Deref, DerefMut};
use std::str::FromStr;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{PgConnection, Postgres};

/// Connections beside the writers': dictionary, lease, readiness and one to spare.
const POOL_SIZE: u32 = 4;

/// Session settings. A worker that dies or freezes in a transaction must not keep its locks for
/// long, and a commit must be on disk before a message is acknowledged.
const SETTINGS: [(&str, &str); 10] = [
    ("synchronous_commit", "on"),
    // Each attempt has a deadline of its own, which grows; a role's would refuse the same batch for ever.
    ("statement_timeout", "0"),
    ("lock_timeout", "5s"),
    ("idle_in_transaction_session_timeout", "10s"),
    ("client_connection_check_interval", "5s"),
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
    ("tcp_user_timeout", "20000"),
    // It looks for chunks to spare anew for each of a batch's rows, which costs four times the row's index
    // probe. Statements give bounds instead. Without TimescaleDB the setting means nothing.
    ("timescaledb.enable_runtime_exclusion", "off"),
];

/// How to reach the database as a worker. The error names no part of the URL but its fault.
pub fn options(url: &str) -> Result<PgConnectOptions, sqlx::Error> {
    Ok(PgConnectOptions::from_str(url)?
        .application_name("penstock-worker")
        .options(SETTINGS)
        .statement_cache_capacity(64))
}

/// The pool for everything but the writers, which hold connections of their own.
pub fn pool(options: PgConnectOptions) -> PgPool {
    PgPoolOptions::new()
        .max_connections(POOL_SIZE)
        .acquire_timeout(std::time::Duration::from_secs(5))
        .connect_lazy_with(options)
}

/// One connection kept for readiness alone, so that a busy pool is not mistaken for a lost database.
pub fn reserve(options: PgConnectOptions) -> PgPool {
    PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(std::time::Duration::from_secs(2))
        .connect_lazy_with(options)
}

/// A connection of a pool that goes back only when its work went well. After an error, a time-out
/// or a cancellation it is closed: what the server still has to say on it is unknown, and a frozen
/// one would keep its place in the pool.
#[derive(Debug)]
pub struct Borrowed {
    connection: PoolConnection<Postgres>,
    gone_well: bool,
}

/// Borrows a connection.
pub async fn borrow(pool: &PgPool) -> Result<Borrowed, sqlx::Error> {
    Ok(Borrowed { connection: pool.acquire().await?, gone_well: false })
}

impl Borrowed {
    /// Its work went well.
    pub fn give_back(mut self) {
        self.gone_well = true;
    }
}

impl Deref for Borrowed {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for Borrowed {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        if !self.gone_well {
            self.connection.close_on_drop();
        }
    }
}
