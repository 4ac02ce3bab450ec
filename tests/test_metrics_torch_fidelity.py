"""Our formulas and torch-fidelity's say the same of the same features; runs where that package is installed."""

import numpy as np
import pytest

from metrics.feature_reference import feature_moments
from metrics.frechet import frechet_distance
from metrics.inception_score import inception_score
from metrics.kernel_distance import kernel_distance
from metrics.precision_recall import precision_recall

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
pytest.importorskip("torch_fidelity")

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(300, 24)), 0.7 * RNG.gamma(2.0, size=(300, 24)) - 1.2


def test_frechet_distance():
    from torch_fidelity import metric_fid

    statistics = [metric_fid.fid_features_to_statistics(torch.tensor(features)) for features in (A, B)]
    (expected,) = metric_fid.fid_statistics_to_metric(*statistics, False).values()
    np.testing.assert_allclose(frechet_distance(feature_moments(A), feature_moments(B)), expected, rtol=1e-9)


def test_kernel_distance_with_all_images_in_one_subset():
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    settings = dict(kid_subsets=1, kid_subset_size=300, kid_kernel="poly", kid_kernel_poly_degree=3)
    settings |= dict(kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1, rng_seed=0, verbose=False)
    expected = kid_features_to_metric(torch.tensor(A), torch.tensor(B), **settings)[KEY_METRIC_KID_MEAN]
    np.testing.assert_allclose(kernel_distance(A, B).value, expected, rtol=1e-9)


def test_inception_score():
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = RNG.normal(0, 2, size=(303, 12))
    expected = tuple(isc_features_to_metric(torch.tensor(logits), splits=10, shuffle=False).values())
    np.testing.assert_allclose(inception_score(logits), expected, rtol=1e-9)


def test_precision_and_recall():
    from torch_fidelity.metric_prc import prc_features_to_metric

    few = B[:, :4]
    settings = dict(prc_neighborhood=3, prc_batch_size=64, verbose=False)
    expected = prc_features_to_metric(torch.tensor(few), torch.tensor(A[:, :4]), **settings)
    found = precision_recall(few, A[:, :4])
    assert 0.2 < min(found) and max(found) < 1
    assert found == pytest.approx((expected["precision"], expected["recall"]))
