//! An account, and one order from its beginning to the certificate.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use instant_acme::{
    Account, AuthorizationStatus, ChallengeType, Error, ExternalAccountKey, Identifier, NewAccount,
    NewOrder, OrderStatus, RetryPolicy,
};

use super::{
    client::{Client, RetryAfter},
    schedule::Suggestion,
    stored::{self, Stored},
};
use crate::{
    config::{Acme, AcmeChallenge},
    net::challenges::{Challenges, PendingChallenge},
};

/// How long the authority may take to look at the challenges, and to issue the certificate.
const DECIDED_WITHIN: Duration = Duration::from_secs(120);

/// The keys of external accounts come with padding and without.
const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The file of the account, in the folder of its authority.
const ACCOUNT: &str = "account.json";

/// What is ordered, and from whom.
pub(super) struct Order<'a> {
    pub(super) acme: &'a Acme,
    /// What is kept of the authority.
    pub(super) folder: PathBuf,
    pub(super) names: &'a [String],
    pub(super) challenge: AcmeChallenge,
    /// What it takes the place of.
    pub(super) replaces: Option<&'a Stored>,
}

/// Why there is no certificate.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) cause: String,
    /// After how many seconds the authority wants to be asked again.
    pub(super) retry_after: Option<i64>,
}

impl Failed {
    pub(super) fn new(cause: impl Into<String>) -> Self {
        Self {
            cause: cause.into(),
            retry_after: None,
        }
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::new(match &error {
            Error::Api(problem) => {
                let kind = problem.r#type.as_deref().unwrap_or_default();
                let kind = kind.trim_start_matches("urn:ietf:params:acme:error:");
                let refused = format!("the authority refused it ({kind})");
                let mut told = match &problem.detail {
                    Some(detail) => format!("{refused}: {detail}"),
                    None => refused,
                };
                for part in &problem.subproblems {
                    told.push_str(&format!("; {part}"));
                }
                crate::shown::harmless(&told)
            }
            other => other.to_string(),
        })
    }
}

impl Order<'_> {
    /// Makes the order, and returns the chain and its key in PEM.
    pub(super) async fn issue(&self, challenges: &Challenges) -> Result<String, Failed> {
        let retry_after = RetryAfter::default();
        let client = self.client(retry_after.clone()).await?;
        self.issue_with(client, challenges)
            .await
            .map_err(|failed| Failed {
                retry_after: retry_after.get(),
                ..failed
            })
    }

    /// Returns what the authority suggests for the renewal of `stored`, if it does.
    pub(super) async fn suggestion(&self, stored: &Stored) -> Option<Suggestion> {
        let id = stored.id.as_ref()?;
        let account = async {
            let client = self.client(RetryAfter::default()).await?;
            // Nobody is asked who has issued nothing.
            match Self::known_account(&self.account_file(), client).await? {
                Some(account) => Ok(account),
                None => Err(Failed::new("there is no account")),
            }
        };
        let answer = async {
            let answer = account.await?.renewal_info(id).await;
            answer.map_err(Failed::from)
        };
        match answer.await {
            Ok((info, pause)) => {
                let window = &info.suggested_window;
                Some((
                    (window.start.unix_timestamp(), window.end.unix_timestamp()),
                    i64::try_from(pause.as_secs()).unwrap_or(i64::MAX),
                ))
            }
            Err(Failed { cause, .. }) => {
                tracing::debug!("the authority suggests no time of renewal: {cause}");
                None
            }
        }
    }

    fn account_file(&self) -> PathBuf {
        self.folder.join(ACCOUNT)
    }

    async fn client(&self, retry_after: RetryAfter) -> Result<Client, Failed> {
        let ca = self.acme.ca_file.clone();
        let made = tokio::task::spawn_blocking(move || Client::new(ca.as_deref(), retry_after));
        let made = made.await.map_err(|cause| Failed::new(cause.to_string()))?;
        made.map_err(Failed::new)
    }

    async fn known_account(path: &Path, client: Client) -> Result<Option<Account>, Failed> {
        // A file that cannot be read is replaced: an account costs nothing.
        let kept = fs::read(path).ok();
        let Some(kept) = kept.and_then(|kept| serde_json::from_slice(&kept).ok()) else {
            return Ok(None);
        };
        let builder = Account::builder_with_http(Box::new(client));
        Ok(Some(builder.from_credentials(kept).await?))
    }

    async fn new_account(&self, client: Client) -> Result<Account, Failed> {
        let contact: Vec<String> = self
            .acme
            .contact
            .iter()
            .map(|contact| match contact.contains(':') {
                true => contact.clone(),
                false => format!("mailto:{contact}"),
            })
            .collect();
        let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
        let asked = NewAccount {
            contact: &contact,
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let external = self.external()?;
        let url = self.acme.directory.url().to_owned();
        let builder = Account::builder_with_http(Box::new(client));
        let (account, credentials) = builder.create(&asked, url, external.as_ref()).await?;
        let path = self.account_file();
        let kept = serde_json::to_vec(&credentials).map_err(|cause| cause.to_string());
        kept.and_then(|kept| stored::write(&path, &kept).map_err(|cause| cause.to_string()))
            .map_err(|cause| {
                Failed::new(format!("{} cannot be written: {cause}", path.display()))
            })?;
        Ok(account)
    }

    fn external(&self) -> Result<Option<ExternalAccountKey>, Failed> {
        let (Some(id), Some(path)) = (&self.acme.eab_key_id, &self.acme.eab_key_file) else {
            return Ok(None);
        };
        let unusable = |cause: String| {
            Failed::new(format!(
                "acme.eab_key_file {} cannot be used: {cause}; it is to have the key as the authority gave it, in base64url",
                path.display()
            ))
        };
        let text = fs::read_to_string(path).map_err(|cause| unusable(cause.to_string()))?;
        let key = BASE64URL.decode(text.trim());
        let key = key.map_err(|cause| unusable(cause.to_string()))?;
        Ok(Some(ExternalAccountKey::new(id.clone(), &key)))
    }

    async fn issue_with(&self, client: Client, challenges: &Challenges) -> Result<String, Failed> {
        let path = self.account_file();
        let known = Self::known_account(&path, client.clone()).await?;
        let was_known = known.is_some();
        let account = match known {
            Some(account) => account,
            None => self.new_account(client.clone()).await?,
        };
        let identifiers: Vec<_> = self.names.iter().cloned().map(Identifier::Dns).collect();
        let mut asked = NewOrder::new(&identifiers);
        if let Some(profile) = &self.acme.profile {
            asked = asked.profile(profile);
        }
        if let Some(id) = self.replaces.and_then(|stored| stored.id.clone()) {
            asked = asked.replaces(id);
        }
        let mut order = match account.new_order(&asked).await {
            Err(Error::Api(problem)) if was_known && is_unknown_account(&problem) => {
                // The authority has lost it, or another one answers under its name now.
                self.new_account(client).await?.new_order(&asked).await?
            }
            ordered => ordered?,
        };
        let pending = self.show(&mut order, challenges).await?;
        let policy = RetryPolicy::new()
            .initial_delay(Duration::from_millis(500))
            .backoff(1.3)
            .timeout(DECIDED_WITHIN);
        let ready = order.poll_ready(&policy).await;
        drop(pending);
        match ready {
            Ok(OrderStatus::Ready) => {}
            // It knows that something is wrong; what it is, the authorizations say.
            Ok(_) | Err(Error::Api(_)) => {
                let told = why_invalid(&mut order).await;
                return Err(match (told, ready) {
                    (Some(told), _) => told,
                    (None, Err(error)) => error.into(),
                    (None, Ok(_)) => {
                        Failed::new("the authority refused the order, and did not say why")
                    }
                });
            }
            Err(error) => return Err(error.into()),
        }
        let key = order.finalize().await?;
        let chain = order.poll_certificate(&policy).await?;
        Ok(format!("{}\n{key}", chain.trim_end()))
    }

    /// Has the listeners show what the authority wants to see of each name.
    async fn show(
        &self,
        order: &mut instant_acme::Order,
        challenges: &Challenges,
    ) -> Result<Vec<PendingChallenge>, Failed> {
        let mut pending = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            let name = authorization.identifier().to_string();
            match authorization.status {
                AuthorizationStatus::Pending => {}
                AuthorizationStatus::Valid => continue,
                other => {
                    return Err(Failed::new(format!(
                        "the authorization for {name} is {other:?}"
                    )));
                }
            }
            let has = |wanted: &ChallengeType| {
                let mut offered = authorization.challenges.iter();
                offered.any(|offered| offered.r#type == *wanted)
            };
            let both = match self.challenge {
                AcmeChallenge::Http01 => [ChallengeType::Http01, ChallengeType::TlsAlpn01],
                AcmeChallenge::TlsAlpn01 => [ChallengeType::TlsAlpn01, ChallengeType::Http01],
            };
            // What was asked for in the configuration is not replaced.
            let taken = if self.acme.challenge.is_some() { 1 } else { 2 };
            let chosen = both.into_iter().take(taken).find(has);
            let none = || {
                Failed::new(format!(
                    "the authority offers no challenge for {name} that the host can show"
                ))
            };
            let chosen = chosen.ok_or_else(none)?;
            let is_http = chosen == ChallengeType::Http01;
            let mut challenge = authorization.challenge(chosen).ok_or_else(none)?;
            let key = challenge.key_authorization();
            pending.push(if is_http {
                challenges.http(&challenge.token, key.as_str())
            } else {
                let digest = key.digest();
                challenges
                    .tls(&name, digest.as_ref())
                    .map_err(Failed::new)?
            });
            challenge.set_ready().await?;
        }
        Ok(pending)
    }
}

fn is_unknown_account(problem: &instant_acme::Problem) -> bool {
    let kind = problem.r#type.as_deref().unwrap_or_default();
    kind.ends_with(":accountDoesNotExist")
}

/// What the authority found wrong with the first name that it did not accept.
async fn why_invalid(order: &mut instant_acme::Order) -> Option<Failed> {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let name = authorization.identifier().to_string();
        let Ok(state) = authorization.refresh().await else {
            continue;
        };
        let mut errors = state.challenges.iter().filter_map(|one| one.error.clone());
        if let Some(problem) = errors.next() {
            let Failed { cause, .. } = Error::Api(problem).into();
            return Some(Failed::new(format!("{name}: {cause}")));
        }
    }
    None
}
