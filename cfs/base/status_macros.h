// CFS_RETURN_IF_ERROR and CFS_ASSIGN_OR_RETURN, spelled like abseil's.
#ifndef CFS_BASE_STATUS_MACROS_H_
#define CFS_BASE_STATUS_MACROS_H_

#include <utility>

#include "absl/base/optimization.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define CFS_RETURN_IF_ERROR(expression)                           \
  do {                                                            \
    absl::Status cfs_status = (expression);                       \
    if (ABSL_PREDICT_FALSE(!cfs_status.ok())) return cfs_status; \
  } while (false)

#define CFS_MACRO_CONCAT_INNER(a, b) a##b
#define CFS_MACRO_CONCAT(a, b) CFS_MACRO_CONCAT_INNER(a, b)
#define CFS_ASSIGN_OR_RETURN(declaration, expression) \
  CFS_ASSIGN_OR_RETURN_INNER(CFS_MACRO_CONCAT(cfs_status_or_, __LINE__), declaration, expression)
#define CFS_ASSIGN_OR_RETURN_INNER(variable, declaration, expression) \
  auto variable = (expression);                                       \
  if (ABSL_PREDICT_FALSE(!variable.ok())) return variable.status();   \
  declaration = std::move(variable).value()

#endif  // CFS_BASE_STATUS_MACROS_H_
