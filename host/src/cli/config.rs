//! `config`, `plan` and `reload-config`: the configuration checked, shown, compared with what the
//! host works with, and put into effect.

use std::path::Path;

use handover_api::{ConfigChange, ConfigEffect, ConfigPlan};
use serde_json::json;

use super::{
    args::{ConfigCommand, Global},
    exit::Failure,
    output::{self, Paint},
};
use crate::{config::Config, human, shown::harmless};

/// `handover config`
pub(super) async fn config(global: &Global, command: ConfigCommand) -> Result<(), Failure> {
    match command {
        ConfigCommand::Check { file } => check(global, &file),
        ConfigCommand::Show { file: Some(file) } => show(global, &read(&file)?),
        ConfigCommand::Show { file: None } => show(global, &global.client().config().await?),
    }
}

fn check(global: &Global, file: &Path) -> Result<(), Failure> {
    let config = read(file)?;
    let files: Vec<_> = config.sources.iter().map(|source| &source.path).collect();
    let apps: Vec<_> = config.apps.keys().collect();
    output::line(&if global.json {
        json!({ "files": files, "apps": apps }).to_string()
    } else {
        format!(
            "{} is a configuration{}, of {}",
            file.display(),
            match files.len() - 1 {
                0 => String::new(),
                others => format!(
                    " with {} of apps.d",
                    human::pluralize(others as u64, "file")
                ),
            },
            human::pluralize(apps.len() as u64, "app")
        )
    });
    Ok(())
}

fn show(global: &Global, config: &impl serde::Serialize) -> Result<(), Failure> {
    let unwritable = |error: &dyn std::fmt::Display| {
        Failure::new(format!(
            "the configuration cannot be written as text: {error}"
        ))
    };
    let text = if global.json {
        serde_json::to_string(config).map_err(|error| unwritable(&error))?
    } else {
        toml::to_string(config).map_err(|error| unwritable(&error))?
    };
    output::line(text.trim_end());
    Ok(())
}

fn read(file: &Path) -> Result<Config, Failure> {
    Config::read(file).map_err(|error| Failure::new(error.to_string()))
}

/// `handover plan`
pub(super) async fn plan(global: &Global) -> Result<(), Failure> {
    let plan = global.client().config_plan().await?;
    tell(global, &plan, "differs from what the host works with");
    Ok(())
}

/// `handover reload-config`
pub(super) async fn reload(global: &Global) -> Result<(), Failure> {
    let plan = global.client().config_reload().await?;
    tell(global, &plan, "was read again");
    Ok(())
}

fn tell(global: &Global, plan: &ConfigPlan, what: &str) {
    if global.json {
        // Our own type of strings: this cannot fail.
        output::line(&serde_json::to_string(plan).unwrap_or_default());
        return;
    }
    if plan.changes.is_empty() {
        output::line(&format!(
            "{} is what the host works with: nothing differs",
            harmless(&plan.file)
        ));
        return;
    }
    let colour = output::colour(&std::io::stdout(), global);
    output::line(&format!("{} {what}:", harmless(&plan.file)));
    for change in &plan.changes {
        output::line(&format!("  {}", line(change, colour)));
    }
}

fn line(change: &ConfigChange, colour: bool) -> String {
    let value = |value: &Option<String>| match value {
        Some(text) => harmless(text).to_string(),
        None => "none".to_owned(),
    };
    let mut text = output::paint(colour, Paint::Bold, &harmless(&change.key).to_string());
    if change.from.is_some() || change.to.is_some() {
        text += &format!("  {} -> {}", value(&change.from), value(&change.to));
    }
    let app = || change.key.split('.').nth(1).unwrap_or_default().to_owned();
    match change.effect {
        ConfigEffect::NextGeneration => {
            text += &format!("  (for the next generation: handover restart {})", app());
        }
        ConfigEffect::NextStart => text += "  (at the next start of the host)",
        ConfigEffect::Now | ConfigEffect::Unknown => {}
    }
    text
}
