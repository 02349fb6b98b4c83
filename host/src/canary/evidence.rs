//! Whether one of two versions fails more often than the other: a sequential test, whose result may
//! be looked at after each request.
//!
//! While requests are divided, only failures are looked at. Of two versions that are equal, a
//! failure is the canary's with the probability w, its share of the requests; of a canary that
//! fails θ times as often, with θw/(θw+1−w). The likelihood ratio of the two, multiplied over all
//! failures, is a martingale where the versions are equal, so that it ever reaches 1/α with a
//! probability of at most α (Ville's inequality), however often it is looked at. What θ is, nobody
//! knows: the ratio is averaged over several.
//!
//! When the canary gets all requests there is nothing left to compare it with but what is known of
//! the other one, the highest failure rate p that its figures leave room for: each request of the
//! canary multiplies the ratio by θ if it failed, and by (1−θp)/(1−p) if not.

/// How many times as often the canary may fail.
const TIMES: [f64; 10] = [2.0, 3.0, 5.0, 8.0, 13.0, 20.0, 35.0, 60.0, 100.0, 200.0];

/// The ratio at which the canary is ended: 1/α, where α is the chance of doing so wrongly.
pub(crate) const TOO_MUCH: f64 = 100.0;

/// What speaks for the canary failing more often. Begins at 1: nothing does.
#[derive(Clone, Debug, Default)]
pub(super) struct Evidence {
    /// The logarithm of the likelihood ratio, for each of [`TIMES`].
    ratios: [f64; TIMES.len()],
}

impl Evidence {
    /// Adds a failure of the canary or of the other one, of a time when the canary had `share` of
    /// the requests, between 0 and 1.
    pub(super) fn add_failure(&mut self, of_canary: bool, share: f64) {
        for (ratio, times) in self.ratios.iter_mut().zip(TIMES) {
            let divided = times * share + 1.0 - share;
            *ratio += if of_canary { times.ln() } else { 0.0 } - divided.ln();
        }
    }

    /// Adds requests of a canary that gets all of them, of which `failed` failed, where the other
    /// one's failure rate is at most `rate`.
    pub(super) fn add_undivided(&mut self, answered: u64, failed: u64, rate: f64) {
        for (ratio, times) in self.ratios.iter_mut().zip(TIMES) {
            if times * rate >= 1.0 {
                // More often than always: it cannot be, so it explains nothing.
                *ratio = f64::NEG_INFINITY;
                continue;
            }
            let unharmed = ((1.0 - times * rate) / (1.0 - rate)).ln();
            *ratio +=
                failed as f64 * times.ln() + answered.saturating_sub(failed) as f64 * unharmed;
        }
    }

    /// Returns the likelihood ratio; at [`TOO_MUCH`] the canary is the worse one.
    pub(super) fn ratio(&self) -> f64 {
        self.ratios.iter().map(|ratio| ratio.exp()).sum::<f64>() / TIMES.len() as f64
    }
}

/// Returns the highest failure rate that is likely of a version of which `failed` of `requests`
/// failed: more than the upper bound of the 95 % interval of a Poisson rate, which is 3 where
/// nothing failed.
pub(super) fn highest_rate(requests: u64, failed: u64) -> f64 {
    let failed = failed as f64;
    let likely = failed + 3.0 + 2.0 * failed.sqrt();
    (likely / requests.max(1) as f64).min(0.999)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers between 0 and 1 that look random, the same each time.
    struct Chance(u64);

    impl Chance {
        fn happens(&mut self, probability: f64) -> bool {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = self.0;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64 <= probability
        }
    }

    /// How many requests the canary had got when it was ended; none: it was not, within `requests`.
    fn ended_after(seed: u64, share: f64, rates: [f64; 2], requests: u64) -> Option<u64> {
        let [stable, canary] = rates;
        let mut chance = Chance(seed);
        let (mut evidence, mut got) = (Evidence::default(), 0);
        for _ in 0..requests {
            let of_canary = chance.happens(share);
            got += u64::from(of_canary);
            if chance.happens(if of_canary { canary } else { stable }) {
                evidence.add_failure(of_canary, share);
                if evidence.ratio() >= TOO_MUCH {
                    return Some(got);
                }
            }
        }
        None
    }

    #[test]
    fn ten_times_the_failures_end_a_canary_after_some_hundred_of_its_requests() {
        let mut runs: Vec<u64> = (0..300)
            .filter_map(|seed| ended_after(seed << 32, 0.05, [0.002, 0.02], 1_000_000))
            .collect();
        assert_eq!(runs.len(), 300, "each is found");
        runs.sort_unstable();
        let (median, late) = (runs[150], runs[270]);
        assert!((180..=290).contains(&median), "{median}");
        assert!((350..=600).contains(&late), "{late}");
    }

    #[test]
    fn an_equal_version_is_hardly_ever_ended() {
        // How often both fail does not matter: only failures are looked at.
        for share in [0.01, 0.05, 0.25, 0.5] {
            let wrong = (0..1000)
                .filter(|seed| ended_after(seed << 32, share, [1.0; 2], 2_000).is_some())
                .count();
            assert!(wrong <= 17, "{wrong} of 1000 at {share}");
        }
    }

    #[test]
    fn a_better_version_leaves_no_evidence() {
        let mut evidence = Evidence::default();
        for _ in 0..100 {
            evidence.add_failure(false, 0.5);
        }
        assert!(evidence.ratio() < 1e-6);
    }

    #[test]
    fn with_all_requests_it_is_compared_with_what_the_other_one_did() {
        let undivided = |requests, failed, other| {
            let mut evidence = Evidence::default();
            let (of_requests, of_failed) = other;
            evidence.add_undivided(requests, failed, highest_rate(of_requests, of_failed));
            evidence.ratio()
        };
        // As often as the other one, and ten times as often.
        assert!(undivided(10_000, 20, (100_000, 200)) < 1.0);
        assert!(undivided(1_000, 20, (100_000, 200)) > TOO_MUCH);
        // Of whom nothing is known, nothing is compared.
        assert!(undivided(100, 100, (0, 0)) < 1.0);
        // And what never failed leaves room for three in all.
        assert!(undivided(1_000, 3, (1_000, 0)) < TOO_MUCH);
        assert!(undivided(1_000, 3, (1_000_000, 0)) > TOO_MUCH);
    }
}
