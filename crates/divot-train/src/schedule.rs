//! The learning rate, as a function of the step.

use std::f64::consts::PI;

use serde::Deserialize;

/// How the learning rate changes: it rises to its peak, then falls to its floor. The defaults are those of
/// the released training (FACTS: "LLM").
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RateConfig {
    /// The highest learning rate.
    pub peak: f64,
    /// Steps in which it rises linearly to the peak.
    pub warmup: usize,
    /// How it falls after them.
    pub decay: Decay,
    /// Where it ends, as a share of the peak.
    pub floor: f64,
}

/// How the learning rate falls after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// Half a cosine.
    Cosine,
    /// A line.
    Linear,
    /// Not at all.
    Constant,
}

impl Default for RateConfig {
    fn default() -> Self {
        Self {
            peak: 1e-4,
            warmup: 500,
            decay: Decay::Cosine,
            floor: 0.05,
        }
    }
}

impl RateConfig {
    /// The learning rate of a step, counted from 0, in a run of `steps`. Past its end it stays at the
    /// floor.
    pub fn at(&self, step: usize, steps: usize) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / self.warmup as f64;
        }
        let rest = steps.saturating_sub(self.warmup).max(1);
        let done = ((step - self.warmup) as f64 / rest as f64).min(1.0);
        let share = match self.decay {
            Decay::Cosine => 0.5 * (1.0 + (PI * done).cos()),
            Decay::Linear => 1.0 - done,
            Decay::Constant => return self.peak,
        };
        self.peak * (self.floor + (1.0 - self.floor) * share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_falls_and_stays() {
        let config = RateConfig {
            peak: 2.0,
            warmup: 4,
            ..RateConfig::default()
        };
        assert_eq!(config.at(0, 104), 0.5);
        assert_eq!(config.at(3, 104), 2.0);
        assert_eq!(config.at(4, 104), 2.0);
        let middle = config.at(54, 104);
        assert!((middle - 2.0 * (0.05 + 0.95 * 0.5)).abs() < 1e-12);
        for step in [104, 105, 1000] {
            assert!((config.at(step, 104) - 0.1).abs() < 1e-12, "{step}");
        }
        let constant = RateConfig {
            decay: Decay::Constant,
            ..config.clone()
        };
        assert_eq!(constant.at(1000, 104), 2.0);
        let linear = RateConfig {
            decay: Decay::Linear,
            floor: 0.0,
            ..config
        };
        assert_eq!(linear.at(54, 104), 1.0);
    }

    #[test]
    fn a_run_without_warm_up_starts_at_the_peak() {
        let config = RateConfig {
            warmup: 0,
            ..RateConfig::default()
        };
        assert_eq!(config.at(0, 1), config.peak);
        assert_eq!(config.at(0, 0), config.peak);
    }
}
