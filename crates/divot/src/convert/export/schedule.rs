//! The noise schedule as the released system keeps it.

use divot_unet::{NoiseSchedule, NoiseScheduleConfig};

use super::plan::Planned;

/// Returns the tables of the noise schedule that the released system keeps with the weights. Without signal at
/// the end, the reciprocals would be infinite, and are 0.
pub(super) fn schedule_buffers(config: &NoiseScheduleConfig) -> Vec<Planned> {
    let NoiseSchedule {
        betas,
        alphas_cumprod: bar,
        ..
    } = NoiseSchedule::new(config);
    let before = |t: usize| if t == 0 { 1.0 } else { bar[t - 1] };
    let variance = |t: usize| betas[t] * (1.0 - before(t)) / (1.0 - bar[t]);
    let reciprocal = |value: f64| match config.zero_terminal_snr {
        true => 0.0,
        false => value,
    };
    let table = |name: &str, value: &dyn Fn(usize) -> f64| {
        let values = (0..config.timesteps).map(|t| value(t) as f32).collect();
        Planned::made(name, vec![config.timesteps], values)
    };
    vec![
        table("betas", &|t| betas[t]),
        table("alphas_cumprod", &|t| bar[t]),
        table("alphas_cumprod_prev", &before),
        table("sqrt_alphas_cumprod", &|t| bar[t].sqrt()),
        table("sqrt_one_minus_alphas_cumprod", &|t| (1.0 - bar[t]).sqrt()),
        table("log_one_minus_alphas_cumprod", &|t| (1.0 - bar[t]).ln()),
        table("sqrt_recip_alphas_cumprod", &|t| {
            reciprocal(bar[t].recip().sqrt())
        }),
        table("sqrt_recipm1_alphas_cumprod", &|t| {
            reciprocal((bar[t].recip() - 1.0).sqrt())
        }),
        table("posterior_variance", &variance),
        table("posterior_log_variance_clipped", &|t| {
            variance(t).max(1e-20).ln()
        }),
        table("posterior_mean_coef1", &|t| {
            betas[t] * before(t).sqrt() / (1.0 - bar[t])
        }),
        table("posterior_mean_coef2", &|t| {
            (1.0 - before(t)) * (1.0 - betas[t]).sqrt() / (1.0 - bar[t])
        }),
    ]
}
