//! Live settings and messages: what an operator changes and asks while an app runs.
//!
//! A setting is checked by the version that is live, then written down, then told to all versions
//! that there are.

use std::{sync::Arc, time::Duration};

use handover_api::{
    AppName, MessageAnswer, MessageAnswers, SettingChange, SettingInfo, SettingsList, query,
};
use serde_json::{Value, json};

use crate::{
    apps::app::App,
    clock,
    rollout::{Rollout, rollback},
    work::{AppWork, Inbox, Reply},
};

/// How long a version may take to check a setting.
const CHECK_WITHIN: Duration = Duration::from_secs(10);

/// How long is waited until all versions have a setting that was changed.
const TOLD_WITHIN: Duration = Duration::from_secs(5);

/// How long a version may take to answer a message, where nobody said how long.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// The longest key, in bytes.
const LONGEST_KEY: usize = 128;

/// How many bytes of JSON an app may have set: they lie in its record, which is written as a whole.
const MOST_BYTES: usize = 256 << 10;

/// Why something is not done, as a sentence.
#[derive(Debug)]
pub(crate) enum SettingsError {
    /// There is no such app.
    NoApp(String),
    /// It cannot be a setting.
    Invalid(String),
    /// The app refuses it, or does not answer.
    Refused(String),
}

/// Returns the work of `app`, its settings being those of its record.
pub(crate) fn work_of(rollout: &Rollout, app: &App) -> Arc<AppWork> {
    let work = rollout.registry.work().of(&app.name);
    let values = app.saved.read(|record| record.settings.values.clone());
    work.settings.replace(values);
    work
}

fn find(rollout: &Rollout, asked: Option<AppName>) -> Result<Arc<App>, SettingsError> {
    rollback::find_app(rollout, asked).map_err(|result| SettingsError::NoApp(result.message))
}

/// Changes a setting, or takes it away. Returns what was done, as a sentence.
///
/// # Errors
/// When it is no setting, or the live version refuses it: nothing is changed then.
pub(crate) async fn set(
    rollout: &Rollout,
    asked: query::Set,
    value: Option<Value>,
) -> Result<String, SettingsError> {
    let app = find(rollout, asked.app)?;
    let key = asked.key;
    let fits = |c: char| c.is_ascii_graphic();
    if key.is_empty() || key.len() > LONGEST_KEY || !key.chars().all(fits) {
        return Err(SettingsError::Invalid(format!(
            "`{}` is no key of a setting: use 1 to {LONGEST_KEY} characters of ASCII without spaces",
            key.escape_debug().take(80).collect::<String>()
        )));
    }
    let work = work_of(rollout, &app);
    let _changing = work.settings.changing.lock().await;
    let change = SettingChange {
        at_ms: clock::now_ms(),
        key: key.clone(),
        value: value.clone(),
        by: asked.by,
    };
    let values = app.saved.read(|record| record.settings.with(&change));
    if value.is_none() && !work.settings.values().contains_key(&key) {
        return Ok(format!(
            "{} has no setting `{key}`: nothing is changed",
            app.name
        ));
    }
    let size = serde_json::to_string(&values).map_or(usize::MAX, |text| text.len());
    if size > MOST_BYTES {
        return Err(SettingsError::Invalid(format!(
            "the settings of {} would have {size} bytes, and at most {MOST_BYTES} are kept: use its state for what is large",
            app.name
        )));
    }
    let live =
        app.running(|running| Some(running.serving.primary()?.active.generation().spec().id.0));
    check(&app, &work, live, &key, value.as_ref()).await?;
    let (told, saved) = app
        .saved
        .change(|record| {
            record.settings.apply(change);
            record.settings.values.clone()
        })
        .await;
    work.settings.replace(told.clone());
    let inboxes = work.settings.inboxes();
    let asked = inboxes
        .iter()
        .filter_map(|(_, inbox)| inbox.ask(json!({ "kind": "settings", "settings": told })));
    let mut behind = 0;
    let by = tokio::time::Instant::now() + TOLD_WITHIN;
    for reply in asked.collect::<Vec<_>>() {
        // One that ends meanwhile has nothing to be told.
        behind += u64::from(tokio::time::timeout_at(by, reply).await.is_err());
    }
    let mut message = match value {
        Some(value) => format!("`{key}` of {} is {value}", app.name),
        None => format!("`{key}` of {} is taken away", app.name),
    };
    if live.is_none() {
        message.push_str("; nothing is live that could have checked it");
    }
    if behind > 0 {
        message.push_str("; a version that is busy has not taken it yet");
    }
    if let Err(error) = saved {
        message.push_str(&format!("; it is not durable yet: {error}"));
    }
    Ok(message)
}

/// Has the live version check a setting, if there is one and it checks any.
async fn check(
    app: &App,
    work: &AppWork,
    live: Option<u64>,
    key: &str,
    value: Option<&Value>,
) -> Result<(), SettingsError> {
    let Some(inbox) = inbox_of(work, live) else {
        return Ok(());
    };
    let question = json!({ "kind": "check", "key": key, "value": value });
    let Some(reply) = inbox.ask(question) else {
        return Ok(());
    };
    let why = match tokio::time::timeout(CHECK_WITHIN, reply).await {
        Ok(Ok(Ok(_))) => return Ok(()),
        Ok(Ok(Err(why))) => format!("{} refuses it: {why}", app.name),
        Ok(Err(_)) => format!("{} ended while it checked it: try again", app.name),
        Err(_) => format!(
            "{} did not check it within {} s: its check must not block",
            app.name,
            CHECK_WITHIN.as_secs()
        ),
    };
    Err(SettingsError::Refused(format!("{why}. Nothing is changed")))
}

fn inbox_of(work: &AppWork, generation: Option<u64>) -> Option<Arc<Inbox>> {
    let inboxes = work.settings.inboxes().into_iter();
    let mut of_generation = inboxes.filter(|(number, _)| Some(*number) == generation);
    of_generation.next_back().map(|(_, inbox)| inbox)
}

/// Lists the settings of an app, and who changed them.
///
/// # Errors
/// When there is no such app.
pub(crate) fn list(rollout: &Rollout, asked: query::OfApp) -> Result<SettingsList, SettingsError> {
    let app = find(rollout, asked.app)?;
    Ok(app.saved.read(|record| {
        let settings = record.settings.values.iter().map(|(key, value)| {
            let last = record.settings.last(key);
            SettingInfo {
                key: key.clone(),
                value: value.clone(),
                at_ms: last.map(|change| change.at_ms),
                by: last.and_then(|change| change.by.clone()),
            }
        });
        SettingsList {
            app: app.name.clone(),
            settings: settings.collect(),
            history: record.settings.changes.clone(),
        }
    }))
}

/// Sends a message to every version of an app that there is, and returns what each answers, the
/// oldest first.
///
/// # Errors
/// When there is no such app, or nothing of it runs.
pub(crate) async fn send(
    rollout: &Rollout,
    asked: query::Send,
    text: String,
) -> Result<MessageAnswers, SettingsError> {
    let app = find(rollout, asked.app)?;
    let work = rollout.registry.work().of(&app.name);
    let all = app.running(|running| running.generations());
    let running = all.into_iter().filter(|(_, retained)| retained.is_none());
    let within = asked
        .timeout_ms
        .map_or(ANSWER_WITHIN, Duration::from_millis);
    let by = tokio::time::Instant::now() + within;
    // All are asked before the first answer is waited for.
    let questions: Vec<_> = running
        .filter_map(|(generation, _)| {
            let spec = generation.spec();
            let inbox = inbox_of(&work, Some(spec.id.0));
            let question = json!({ "kind": "message", "text": text });
            let reply = inbox.as_ref().and_then(|inbox| inbox.ask(question));
            // One that ends has nobody who could answer.
            let is_over = reply.is_none() && inbox.is_some_and(|inbox| inbox.has_ended());
            (!is_over).then(|| (spec.id, spec.version.clone(), reply))
        })
        .collect();
    if questions.is_empty() {
        let why = format!("nothing of {} runs: there is nobody to answer", app.name);
        return Err(SettingsError::Refused(why));
    }
    let mut answers = Vec::new();
    for (generation, version, reply) in questions {
        let reply: Reply = match reply {
            None => Err("this version takes no messages (on_message)".to_owned()),
            Some(reply) => match tokio::time::timeout_at(by, reply).await {
                Ok(Ok(reply)) => reply,
                // It has ended, as those that are replaced do.
                Ok(Err(_)) => continue,
                Err(_) => Err(format!("it did not answer within {} s", within.as_secs())),
            },
        };
        let (answer, error) = match reply {
            Ok(answer) => (Some(answer), None),
            Err(error) => (None, Some(error)),
        };
        answers.push(MessageAnswer {
            generation,
            version,
            answer,
            error,
        });
    }
    Ok(MessageAnswers {
        app: app.name.clone(),
        answers,
    })
}
