"""The site whose web workers enqueue tasks and look up results, their own or not."""

from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.tasks import default_task_backend
from django.tasks.exceptions import TaskResultDoesNotExist
from django.urls import path

from . import store_tasks

application = get_wsgi_application()


def enqueue(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"id": store_tasks.no_op.enqueue().id})


def look_up(request: HttpRequest, result_id: str) -> JsonResponse:
    try:
        default_task_backend.get_result(result_id)
    except TaskResultDoesNotExist:
        return JsonResponse({"is_found": False})
    return JsonResponse({"is_found": True})


urlpatterns = [path("enqueue", enqueue), path("look-up/<result_id>", look_up)]
