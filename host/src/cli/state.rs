//! `state`: what an app keeps in the host.

use std::{
    fs::File,
    io::{self, Cursor, Read, Write},
    path::Path,
};

use handover_api::{
    AppName, Client, StateDone, StateKey, StateKeyLine, StateProblem, StateStats,
    query::State as StateQuery,
};
use http::Method;
use serde_json::json;

use super::{
    args::{Global, StateCommand},
    exit::Failure,
    output,
};
use crate::{
    human::memory,
    shown::harmless,
    state::{Footer, read_dump, text_or_base64},
};

/// `handover state`
pub(super) async fn state(global: &Global, command: StateCommand) -> Result<(), Failure> {
    let client = global.client();
    match command {
        StateCommand::Ls {
            app,
            prefix,
            namespace,
            after,
            limit,
        } => {
            let query = StateQuery {
                namespace: namespace.as_deref(),
                prefix: prefix.as_deref(),
                after: after.as_deref(),
                limit,
                ..StateQuery::default()
            };
            list(global, &client, &app, &query).await
        }
        StateCommand::Get {
            app,
            key,
            namespace,
        } => {
            let query = StateQuery {
                namespace: namespace.as_deref(),
                key: Some(&key),
                ..StateQuery::default()
            };
            let value = client.state_value(&app, &query).await?;
            print(global, &key, &value);
            Ok(())
        }
        StateCommand::Put {
            app,
            key,
            value,
            namespace,
            ttl,
        } => {
            let value = match value.as_str() {
                "-" => all_of(io::stdin())?,
                value => value.as_bytes().to_vec(),
            };
            let query = StateQuery {
                namespace: namespace.as_deref(),
                key: Some(&key),
                ttl_ms: ttl.map(crate::clock::millis),
                ..StateQuery::default()
            };
            let from = Box::new(Cursor::new(value.clone()));
            client
                .state_change(Method::PUT, &app, "value", &query, Some(from))
                .await?;
            print(global, &key, &value);
            Ok(())
        }
        StateCommand::Rm {
            app,
            key,
            namespace,
        } => {
            let query = StateQuery {
                namespace: namespace.as_deref(),
                key: Some(&key),
                ..StateQuery::default()
            };
            let done = client
                .state_change(Method::DELETE, &app, "value", &query, None)
                .await?;
            tell(global, &done, &format!("removed {key}"));
            Ok(())
        }
        StateCommand::Export {
            app,
            namespace,
            after,
        } => {
            let query = StateQuery {
                namespace: namespace.as_deref(),
                after: after.as_deref(),
                ..StateQuery::default()
            };
            export(&client, &app, &query).await
        }
        StateCommand::Import { app, file } => {
            let from: Box<dyn Read + Send> = match file.to_str() {
                Some("-") => Box::new(io::stdin()),
                _ => Box::new(open(&file)?),
            };
            let done = change(&client, &app, "import", Some(from)).await?;
            let entries = done.entries;
            tell(global, &done, &format!("{entries} entries put"));
            Ok(())
        }
        StateCommand::Backup { app, file } => backup(global, &client, &app, &file).await,
        StateCommand::Restore { app, file } => {
            let from = Box::new(open(&file)?);
            let done = change(&client, &app, "restore", Some(from)).await?;
            tell(
                global,
                &done,
                &format!(
                    "restored: {app} has the {} keys of the backup now",
                    done.entries
                ),
            );
            Ok(())
        }
        StateCommand::Verify { app, file } => {
            let from = match &file {
                None => None,
                Some(file) => Some(Box::new(open(file)?) as Box<dyn Read + Send>),
            };
            let done = change(&client, &app, "verify", from).await?;
            let what = match &file {
                Some(file) => file.display().to_string(),
                None => "a backup made now".to_owned(),
            };
            tell(
                global,
                &done,
                &format!(
                    "{what} can be restored: that was done beside {app}, and all {} keys compared",
                    done.entries
                ),
            );
            Ok(())
        }
        StateCommand::Stats { app } => {
            let stats = client.state_stats(&app).await?;
            output::line(&if global.json {
                // Our own type of strings and numbers: this cannot fail.
                serde_json::to_string(&stats).unwrap_or_default()
            } else {
                text(&stats)
            });
            Ok(())
        }
    }
}

async fn change(
    client: &Client,
    app: &AppName,
    what: &str,
    from: Option<Box<dyn Read + Send>>,
) -> Result<StateDone, Failure> {
    let query = StateQuery::default();
    let done = client.state_change(Method::POST, app, what, &query, from);
    Ok(done.await?)
}

fn open(file: &Path) -> Result<File, Failure> {
    File::open(file)
        .map_err(|error| Failure::new(format!("{} cannot be read: {error}", file.display())))
}

fn all_of(mut from: impl Read) -> Result<Vec<u8>, Failure> {
    let mut all = Vec::new();
    from.read_to_end(&mut all)
        .map_err(|error| Failure::new(format!("standard input cannot be read: {error}")))?;
    Ok(all)
}

fn tell(global: &Global, done: &StateDone, text: &str) {
    output::line(&if global.json {
        // Our own type of strings and numbers: this cannot fail.
        serde_json::to_string(done).unwrap_or_default()
    } else {
        harmless(text).to_string()
    });
}

/// Prints a value alone. Its bytes are as they are, with the end of a line behind text that has
/// none.
fn print(global: &Global, key: &str, value: &[u8]) {
    let (text, base64) = text_or_base64(value);
    if global.json {
        let shown = match (text, base64) {
            (Some(text), _) => json!({ "key": key, "value": text }),
            (None, base64) => json!({ "key": key, "value_base64": base64 }),
        };
        output::line(&shown.to_string());
        return;
    }
    let mut out = io::stdout().lock();
    // A reader that left has what it wanted.
    let _ = out.write_all(value);
    if text.is_some() && !value.ends_with(b"\n") {
        let _ = out.write_all(b"\n");
    }
    let _ = out.flush();
}

async fn list(
    global: &Global,
    client: &Client,
    app: &AppName,
    query: &StateQuery<'_>,
) -> Result<(), Failure> {
    let mut lines = client.state_keys(app, query).await?;
    while let Some(line) = lines.next().await? {
        let key = match line.value {
            StateKeyLine::Key(key) => key,
            StateKeyLine::Problem(StateProblem { error }) => return Err(Failure::new(error)),
        };
        let shown = if global.json { line.text } else { name(&key) };
        if !output::is_read(&shown) {
            return Ok(()); // the reader left, as `head` does
        }
    }
    Ok(())
}

fn name(key: &StateKey) -> String {
    match (&key.key, &key.key_base64) {
        (Some(key), _) => harmless(key).to_string(),
        (None, Some(base64)) => format!("base64:{base64}"),
        (None, None) => String::new(),
    }
}

/// Lines that come to their end, or to the host's word on why they do not.
#[derive(Default)]
struct Last(Vec<u8>);

impl Last {
    fn push(&mut self, bytes: &[u8]) {
        let begin = bytes[..bytes.len().saturating_sub(1)]
            .iter()
            .rposition(|byte| *byte == b'\n');
        match begin {
            Some(at) => self.0 = bytes[at + 1..].to_vec(),
            None if self.0.ends_with(b"\n") => self.0 = bytes.to_vec(),
            None => self.0.extend_from_slice(bytes),
        }
    }

    fn problem(&self) -> Result<(), Failure> {
        match serde_json::from_slice(&self.0) {
            Ok(StateProblem { error }) => Err(Failure::new(error)),
            Err(_) => Ok(()),
        }
    }
}

async fn export(client: &Client, app: &AppName, query: &StateQuery<'_>) -> Result<(), Failure> {
    let mut last = Last::default();
    let written = client
        .state_dump(app, "export", query, |bytes| {
            last.push(bytes);
            // A reader that left has what it wanted.
            Ok(io::stdout().write_all(bytes).is_ok())
        })
        .await?;
    written.map_err(|error| Failure::new(error.to_string()))?;
    let _ = io::stdout().flush();
    last.problem()
}

async fn backup(
    global: &Global,
    client: &Client,
    app: &AppName,
    file: &Path,
) -> Result<(), Failure> {
    let cannot = |error: &dyn std::fmt::Display| {
        Failure::new(format!("{} was not written: {error}", file.display()))
    };
    let folder = match file.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let mut temporary = tempfile::NamedTempFile::new_in(folder).map_err(|error| cannot(&error))?;
    let mut last = Last::default();
    let query = StateQuery::default();
    let written = client.state_dump(app, "backup", &query, |bytes| {
        last.push(bytes);
        temporary.write_all(bytes).map(|()| true)
    });
    written.await?.map_err(|error| cannot(&error))?;
    last.problem()?;
    let read = temporary.reopen().map_err(|error| cannot(&error))?;
    let footer: Footer =
        read_dump(io::BufReader::new(read), |_, _, _, _| Ok(())).map_err(|error| cannot(&error))?;
    temporary
        .as_file()
        .sync_all()
        .map_err(|error| cannot(&error))?;
    temporary.persist(file).map_err(|error| cannot(&error))?;
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| cannot(&error))?;
    let done = StateDone {
        entries: footer.entries,
        version: None,
        sha256: Some(footer.sha256),
    };
    let text = format!("{} has the {} keys of {app}", file.display(), done.entries);
    tell(global, &done, &text);
    Ok(())
}

fn text(stats: &StateStats) -> String {
    let namespaces = match stats.namespaces.as_slice() {
        [] => "none".to_owned(),
        names => names.join(", "),
    };
    format!(
        "{} keeps {} of {} in {} keys, version {}\nfile: {} ({})\nin memory: {} in {} keys\nnamespaces: {namespaces}",
        stats.app,
        memory(stats.bytes),
        memory(stats.max_bytes),
        stats.keys,
        stats.version,
        memory(stats.file_bytes),
        stats.engine,
        memory(stats.memory_bytes),
        stats.memory_keys,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_found_however_the_bytes_come() {
        let mut last = Last::default();
        for piece in ["{\"a\":1}\n{\"err", "or\":\"the disk", " fails\"}\n"] {
            last.push(piece.as_bytes());
        }
        assert!(last.problem().is_err());
        let mut whole = Last::default();
        whole.push(b"{\"error\":\"x\"}\n");
        whole.push(b"{\"key\":1}\n");
        assert!(whole.problem().is_ok());
    }
}
