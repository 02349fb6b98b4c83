//! The bench routes of the state fixture in a static axum app: what an app has that keeps its own
//! database.
//!
//! `state-twin ADDRESS WORKERS redb|sqlite FILE`. Each write is a commit of its own and durable
//! before it is answered, as each of these databases does it when an app just uses it: redb with
//! its defaults, SQLite with a write-ahead log and `synchronous = FULL`. Writes and transactions
//! run on tokio's blocking threads, one at a time, since both databases have one writer; reads run
//! where the handler runs.

use std::{
    cell::RefCell,
    error::Error,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use rusqlite::Connection;
use tokio::task::spawn_blocking;

const USAGE: &str = "usage: state-twin ADDRESS WORKERS redb|sqlite FILE";
const KEYS: u64 = 1000;
const TABLE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("entries");

type Failure = Box<dyn Error + Send + Sync>;

/// A database as an app uses it.
trait Store: Send + Sync + 'static {
    fn read(&self, key: &str) -> Result<Option<Vec<u8>>, Failure>;
    fn write(&self, key: &str, value: &[u8]) -> Result<(), Failure>;
    /// Reads two numbers, takes one from the first and adds it to the second.
    fn transact(&self, from: &str, to: &str) -> Result<(), Failure>;
}

fn number(value: Option<&[u8]>) -> i64 {
    value
        .and_then(|value| std::str::from_utf8(value).ok())
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

struct Redb(Database);

impl Store for Redb {
    fn read(&self, key: &str) -> Result<Option<Vec<u8>>, Failure> {
        let table = self.0.begin_read()?.open_table(TABLE)?;
        Ok(table.get(key)?.map(|value| value.value().to_vec()))
    }

    fn write(&self, key: &str, value: &[u8]) -> Result<(), Failure> {
        let transaction = self.0.begin_write()?;
        transaction.open_table(TABLE)?.insert(key, value)?;
        Ok(transaction.commit()?)
    }

    fn transact(&self, from: &str, to: &str) -> Result<(), Failure> {
        let transaction = self.0.begin_write()?;
        {
            let mut table = transaction.open_table(TABLE)?;
            for (key, change) in [(from, -1), (to, 1)] {
                let before = number(table.get(key)?.map(|it| it.value().to_vec()).as_deref());
                table.insert(key, (before + change).to_string().as_bytes())?;
            }
        }
        Ok(transaction.commit()?)
    }
}

struct Sqlite {
    file: PathBuf,
    writer: Mutex<Connection>,
}

impl Sqlite {
    fn open(file: &Path) -> Result<Connection, Failure> {
        let connection = Connection::open(file)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        Ok(connection)
    }
}

thread_local! {
    /// A connection for each worker that reads.
    static READER: RefCell<Option<Connection>> = const { RefCell::new(None) };
}

const PUT: &str = "INSERT INTO entries VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2";
const GET: &str = "SELECT value FROM entries WHERE key = ?1";

fn get_from(connection: &Connection, key: &str) -> Result<Option<Vec<u8>>, Failure> {
    let mut statement = connection.prepare_cached(GET)?;
    let mut rows = statement.query([key])?;
    Ok(match rows.next()? {
        Some(row) => Some(row.get(0)?),
        None => None,
    })
}

impl Store for Sqlite {
    fn read(&self, key: &str) -> Result<Option<Vec<u8>>, Failure> {
        READER.with_borrow_mut(|reader| {
            if reader.is_none() {
                *reader = Some(Self::open(&self.file)?);
            }
            let connection = reader.as_ref().ok_or("it was just opened")?;
            get_from(connection, key)
        })
    }

    fn write(&self, key: &str, value: &[u8]) -> Result<(), Failure> {
        let connection = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        connection.prepare_cached(PUT)?.execute((key, value))?;
        Ok(())
    }

    fn transact(&self, from: &str, to: &str) -> Result<(), Failure> {
        let mut connection = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let transaction = connection.transaction()?;
        for (key, change) in [(from, -1), (to, 1)] {
            let before = number(get_from(&transaction, key)?.as_deref());
            let value = (before + change).to_string();
            transaction
                .prepare_cached(PUT)?
                .execute((key, value.as_bytes()))?;
        }
        Ok(transaction.commit()?)
    }
}

#[derive(Clone)]
struct App {
    store: Arc<dyn Store>,
    next: Arc<AtomicU64>,
}

impl App {
    /// Another number each time, spread as the plugin does it.
    fn key(&self) -> u64 {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
    }
}

fn answered<T>(done: Result<T, Failure>) -> Result<T, (StatusCode, String)> {
    done.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

async fn read(State(app): State<App>) -> Result<Vec<u8>, (StatusCode, String)> {
    let key = format!("key-{:04}", app.key() % KEYS);
    answered(app.store.read(&key)).map(Option::unwrap_or_default)
}

async fn write(State(app): State<App>) -> Result<(), (StatusCode, String)> {
    let number = app.key();
    let key = format!("key-{:04}", number % KEYS);
    // Another value each time: SQLite writes none that is there already.
    let value = format!("{number:0100}");
    let done = spawn_blocking(move || app.store.write(&key, value.as_bytes())).await;
    answered(done.unwrap_or_else(|error| Err(error.into())))
}

async fn transact(State(app): State<App>) -> Result<(), (StatusCode, String)> {
    let (from, to) = (app.key() % KEYS, app.key() % KEYS);
    let done = spawn_blocking(move || {
        let name = |number| format!("account-{number:04}");
        app.store.transact(&name(from), &name(to))
    });
    answered(done.await.unwrap_or_else(|error| Err(error.into())))
}

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().ok_or(USAGE)?;
    let workers = arguments.next().ok_or(USAGE)?.parse()?;
    let (kind, file) = (
        arguments.next().ok_or(USAGE)?,
        PathBuf::from(arguments.next().ok_or(USAGE)?),
    );
    let store: Arc<dyn Store> = match kind.as_str() {
        "redb" => {
            let database = Database::create(&file)?;
            let transaction = database.begin_write()?;
            transaction.open_table(TABLE)?;
            transaction.commit()?;
            Arc::new(Redb(database))
        }
        "sqlite" => {
            let connection = Sqlite::open(&file)?;
            connection.execute(
                "CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID",
                (),
            )?;
            let writer = Mutex::new(connection);
            Arc::new(Sqlite { file, writer })
        }
        _ => return Err(USAGE.into()),
    };
    for key in 0..KEYS {
        store.write(&format!("key-{key:04}"), &[b'x'; 100])?;
    }
    let app = App {
        store,
        next: Arc::default(),
    };
    let router = Router::new()
        .route("/", get(async || "ready"))
        .route("/bench/read", get(read))
        .route("/bench/write", get(write))
        .route("/bench/transaction", get(transact))
        .with_state(app);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(address).await?;
        Ok(axum::serve(listener, router).await?)
    })
}
